"""Vectors drawn from a batch to revive unused codes, inside the launch that updates the codebook.

The functions here are the steps between which all programs wait: a random number for each vector, the largest of them,
the vectors to which they belong, which of those are new, and which unused code gets which. Everything is decided by
whole numbers or by sums in a fixed order, so that every run, with however many programs, draws alike. They say in
kernels what ``draw`` says in ``dqcore/ops/reference/draw_vectors.py``, and ``is_new``, ``distinct`` and ``revive`` in
``dqcore/ops/reference/codebook_update.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels.common import bound, widen
from dqcore.kernels.vectors import starts

BINS = tl.constexpr(4096)
SHIFT = tl.constexpr(51)  # of a random number of 63 bits the first 12 name its bin
STEP = tl.constexpr(-0x61C8864680B583EB)
FIRST = tl.constexpr(-0x40A7B892E31B1A47)
SECOND = tl.constexpr(-0x6B2FB644ECCEEE15)
LARGEST = tl.constexpr(2**63 - 1)


@triton.jit
def mix(bits):
    """A bijection of int64 that looks random."""
    bits = (bits ^ (bits >> 30)) * FIRST
    bits = (bits ^ (bits >> 27)) * SECOND
    return bits ^ (bits >> 31)


@triton.jit
def hashed(values, d, D):
    """A hash of each row's values in these channels, ``(ROWS,)`` int64; those of all channels are to be added."""
    bits = (values + 0.0).to(tl.int32, bitcast=True).to(tl.int64)  # + 0.0: both zeros have the same bits
    mixed = mix(bits + ((d + 1).to(tl.int64) * STEP)[None, :])
    return tl.sum(tl.where((d < D)[None, :], mixed, 0), 1)


@triton.jit
def number_cells(grain, codes, known, keys, histogram, seed, before, N, height, width, program,
                 G: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """A random number of 63 bits for the first cell of each code's block, -1 for others; and how many a bin has.

    ``known``, if given, has these numbers already, and there are no codes.
    """
    start = program.to(tl.int64) * BLOCK
    for first in range(bound(start), bound(N), PROGRAMS * BLOCK):
        cell = first + tl.arange(0, BLOCK).to(tl.int64)
        line, column = cell // width, cell % width
        row = line % height
        valid = cell < N
        if known is None:
            valid &= tl.load(codes + cell, mask=cell < N, other=-1) >= 0
        if G > 1:
            region = (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1))
            granularity = tl.load(grain + region, mask=valid, other=G - 1)
            side = tl.full([BLOCK], 1, tl.int64) << (G - 1 - granularity)
            valid &= ((row | column) & (side - 1)) == 0
            if known is not None:
                valid &= granularity >= 0
        if known is None:
            key = mix(seed + (cell + before) * STEP) & LARGEST
        else:
            key = tl.load(known + cell, mask=cell < N, other=-1)
            valid &= key >= 0
        tl.store(keys + cell, tl.where(valid, key, -1), mask=cell < N)  # (BLOCK,)
        tl.atomic_add(histogram + (key >> SHIFT), 1, mask=valid, sem="relaxed")


@triton.jit
def list_largest(keys, listed, histogram, length, number, N, program, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """List the cells of the bins that have the ``number`` largest, in any order."""
    bins = tl.arange(0, BINS)
    count = tl.load(histogram + bins, cache_modifier=".cg")
    above = tl.sum(count, 0) - tl.cumsum(count, 0) + count  # in this bin and those above it
    lowest = tl.maximum(tl.sum((above >= number).to(tl.int64), 0) - 1, 0) << SHIFT
    start = program.to(tl.int64) * BLOCK
    for first in range(bound(start), bound(N), PROGRAMS * BLOCK):
        cell = first + tl.arange(0, BLOCK).to(tl.int64)
        key = tl.load(keys + cell, mask=cell < N, other=-1, cache_modifier=".cg")
        chosen = ((key >= 0) & (key >= lowest)).to(tl.int32)
        slot = tl.atomic_add(length, tl.sum(chosen, 0), sem="relaxed") + tl.cumsum(chosen, 0) - chosen
        tl.store(listed + slot, cell, mask=chosen > 0)  # (BLOCK,)


@triton.jit
def rank_listed(keys, listed, drawn, length, number, program, PROGRAMS: tl.constexpr, ROWS: tl.constexpr):
    """``drawn`` gets the cells with the ``number`` largest, descending; of equal ones the first cell comes first."""
    start = program * ROWS
    for first in range(bound(start), bound(length), PROGRAMS * ROWS):
        i = first + tl.arange(0, ROWS)
        cell = tl.load(listed + i, mask=i < length, other=0, cache_modifier=".cg")
        key = tl.load(keys + cell, mask=i < length, other=-1, cache_modifier=".cg")
        rank = tl.zeros([ROWS], tl.int32)
        for other in range(0, bound(length), 256):
            j = other + tl.arange(0, 256)
            other_cell = tl.load(listed + j, mask=j < length, other=0, cache_modifier=".cg")
            rival = tl.load(keys + other_cell, mask=j < length, other=-1, cache_modifier=".cg")
            above = rival[None, :] > key[:, None]  # (ROWS, 256)
            above |= (rival[None, :] == key[:, None]) & (other_cell[None, :] < cell[:, None])
            rank += tl.sum(above.to(tl.int32), 1)
        tl.store(drawn + rank, cell, mask=(i < length) & (rank < number))  # (ROWS,)


@triton.jit
def place(source, cell, inside, height, width, G: tl.constexpr, D: tl.constexpr):
    """Where the vectors of these cells begin, their strides, and how many cells the code of each fills."""
    maps, strides, grain, _ = source
    line, column = cell // width, cell % width
    granularity = tl.zeros(cell.shape, tl.int32)
    if G > 1:
        region = (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1))
        granularity = tl.load(grain + region, mask=inside, other=0).to(tl.int32)
    start, stride = starts(maps, strides, None, cell, granularity, line // height, line % height, column, G, D, 0)
    return start, stride, tl.full(cell.shape, 1, tl.int32) << (2 * (G - 1 - granularity))


@triton.jit
def gather(source, drawn, rows, distance, hashes, sums, squares, number, height, width, program,
           G: tl.constexpr, D: tl.constexpr, PROGRAMS: tl.constexpr,
           ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """The vectors of the drawn cells, their distances and hashes; and sums over each ROWS of them, float64."""
    error = source[3]
    start_row = program * ROWS
    for first in range(bound(start_row), bound(number), PROGRAMS * ROWS):
        i = first + tl.arange(0, ROWS)
        inside = i < number
        cell = tl.load(drawn + i, mask=inside, other=0, cache_modifier=".cg")
        start, stride, cells = place(source, cell, inside, height, width, G, D)
        total = tl.zeros([ROWS], tl.int64)
        square = tl.zeros([ROWS], tl.float64)
        for channel in range(0, D, BLOCK_D):
            d = channel + tl.arange(0, BLOCK_D)
            known = inside[:, None] & (d < D)[None, :]
            value = widen(tl.load(start[:, None] + d[None, :] * stride[:, None], mask=known, other=0.0))
            tl.store(rows + i.to(tl.int64)[:, None] * D + d[None, :], value, mask=known)  # (ROWS, BLOCK_D)
            total += hashed(value, d, D)
            wide = value.to(tl.float64)
            square += tl.sum(wide * wide, 1)
            tl.store(sums + (first // ROWS) * D + d, tl.sum(wide, 0), mask=d < D)  # (BLOCK_D,)
        far = tl.load(error + cell, mask=inside, other=0.0) * cells.to(tl.float32)
        tl.store(distance + i, far, mask=inside)  # (ROWS,), as are the next two
        tl.store(hashes + i, total, mask=inside)
        tl.store(squares + i, square, mask=inside)


@triton.jit
def find_first(hashes, code_hashes, unused, first_of, number, K, program, PROGRAMS: tl.constexpr, ROWS: tl.constexpr):
    """Which drawn vectors have values that no code in use has, and none drawn before them."""
    start = program * ROWS
    for first in range(bound(start), bound(number), PROGRAMS * ROWS):
        i = first + tl.arange(0, ROWS)
        own = tl.load(hashes + i, mask=i < number, other=0, cache_modifier=".cg")
        known = tl.zeros([ROWS], tl.int32)
        for other in range(0, bound(number), 256):
            j = other + tl.arange(0, 256)
            rival = tl.load(hashes + j, mask=j < number, other=0, cache_modifier=".cg")
            known += tl.sum(((rival[None, :] == own[:, None]) & (j[None, :] < i[:, None])).to(tl.int32), 1)
        for other in range(0, bound(K), 256):
            j = other + tl.arange(0, 256)
            rival = tl.load(code_hashes + j, mask=j < K, other=0, cache_modifier=".cg")
            used = tl.load(unused + j, mask=j < K, other=1, cache_modifier=".cg") == 0
            known += tl.sum(((rival[None, :] == own[:, None]) & used[None, :]).to(tl.int32), 1)
        tl.store(first_of + i, (known == 0).to(tl.int64), mask=i < number)  # (ROWS,)


@triton.jit
def choose(first_of, distance, sums, squares, chosen, fresh, number,
           D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """List the drawn vectors that may become codes, in order: first of their values and not where a code lies already.

    A code lies there if it is nearer than a thousandth of how far the drawn vectors lie apart.
    """
    square = tl.zeros([BLOCK], tl.float64)
    for first in range(0, bound(number), BLOCK):
        i = first + tl.arange(0, BLOCK)
        square += tl.load(squares + i, mask=i < number, other=0.0, cache_modifier=".cg")
    apart = tl.sum(square, 0)
    many = tl.maximum(number, 1).to(tl.float64)
    for channel in range(0, D, BLOCK_D):
        d = channel + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], tl.float64)
        for part in range(0, bound(tl.cdiv(number, ROWS))):
            total += tl.load(sums + part * D + d, mask=d < D, other=0.0, cache_modifier=".cg")
        apart -= tl.sum(total * total, 0) / many
    limit = (1e-6 * (tl.maximum(apart, 0.0) / many)).to(tl.float32)
    length = number * 0
    for first in range(0, bound(number), BLOCK):
        i = first + tl.arange(0, BLOCK)
        is_new = tl.load(distance + i, mask=i < number, other=0.0, cache_modifier=".cg") > limit
        is_first = tl.load(first_of + i, mask=i < number, other=0, cache_modifier=".cg") > 0
        takes = (is_new & is_first & (i < number)).to(tl.int32)
        tl.store(chosen + length + tl.cumsum(takes, 0) - takes, i.to(tl.int64), mask=takes > 0)  # (BLOCK,)
        length += tl.sum(takes, 0)
    tl.store(fresh, length)


@triton.jit
def revive(codebook, chosen, rows, unused, fresh, K, program,
           D: tl.constexpr, PROGRAMS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """The n-th unused code becomes the n-th chosen vector, as if that one vector had chosen it."""
    weight, cluster_size, _, embed_sum = codebook
    length = tl.load(fresh, cache_modifier=".cg")
    start = program * ROWS
    for first in range(bound(start), bound(K), PROGRAMS * ROWS):
        k = first + tl.arange(0, ROWS)
        idle_here = tl.load(unused + k, mask=k < K, other=0, cache_modifier=".cg") > 0
        turn = tl.zeros([ROWS], tl.int32)
        for other in range(0, first + ROWS, 256):
            j = other + tl.arange(0, 256)
            before = tl.load(unused + j, mask=j < K, other=0, cache_modifier=".cg").to(tl.int32)
            turn += tl.sum(tl.where(j[None, :] < k[:, None], before[None, :], 0), 1)
        revived = idle_here & (turn < length)
        row = tl.load(chosen + turn, mask=revived, other=0, cache_modifier=".cg")
        for channel in range(0, D, BLOCK_D):
            d = channel + tl.arange(0, BLOCK_D)
            known = revived[:, None] & (d < D)[None, :]
            value = tl.load(rows + row[:, None] * D + d[None, :], mask=known, other=0.0, cache_modifier=".cg")
            at = k.to(tl.int64)[:, None] * D + d[None, :]
            tl.store(weight + at, value, mask=known)  # (ROWS, BLOCK_D), as is the next
            if embed_sum is not None:
                tl.store(embed_sum + at, value, mask=known)
        tl.store(cluster_size + k, tl.full([ROWS], 1.0, tl.float32), mask=revived)  # (ROWS,)
