"""Sequences packed end to end, as a list of blocks: one program a block, no empty programs, the longest work first.

Rows left over after the last sequence form one more sequence, number B, that has nothing on the other side: its
programs write zeros. A sequence of ``n`` rows has ``ceil(n / BLOCK)`` blocks, so that ``ceil(T / BLOCK) + B + 1``
bounds their number without a look at the lengths; programs beyond the true number return.

In causal attention the work of a query block grows with its place in its sequence; that of a key block shrinks. So
blocks are listed by falling *height*: 1 + index for queries, number - index for keys. The place of block (b, height) is
the number of higher blocks, ``sum_c max(0, number_c - height)``, plus the earlier sequences that have this height.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common
from dqcore.kernels.common import bound


@triton.jit(do_not_specialize=["B", "T"], do_not_specialize_on_alignment=["cu_seqlens"])
def _block_list_kernel(
    cu_seqlens, blocks, B, T, LAST_FIRST: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr
):
    HEIGHTS: tl.constexpr = 16
    CHUNK: tl.constexpr = 64
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=T)
    number = tl.cdiv(end - start, BLOCK)
    total = tl.zeros([], tl.int32)
    for first in range(0, bound(tl.maximum(number, 1), INTERPRETED), HEIGHTS):
        height = first + 1 + tl.arange(0, HEIGHTS)
        place = tl.zeros([HEIGHTS], tl.int32)
        total = tl.zeros([], tl.int32)
        for chunk in range(0, bound(B, INTERPRETED) + 1, CHUNK):
            other = chunk + tl.arange(0, CHUNK)
            begin = tl.load(cu_seqlens + other, mask=other <= B, other=0)
            finish = tl.load(cu_seqlens + other + 1, mask=other < B, other=T)
            others = tl.where(other <= B, tl.cdiv(finish - begin, BLOCK), 0)
            higher = tl.maximum(others[None, :] - height[:, None], 0)
            earlier = ((other < sequence)[None, :] & (others[None, :] >= height[:, None])).to(tl.int32)
            place += tl.sum(higher + earlier, 1)
            total += tl.sum(others, 0)
        index = height - 1 if LAST_FIRST else number - height
        mine = height <= number
        tl.store(blocks + 1 + 2 * place, sequence, mask=mine)
        tl.store(blocks + 2 + 2 * place, index, mask=mine)
    if sequence == 0:
        tl.store(blocks, total)


@triton.jit
def listed(blocks, entry, BLOCK: tl.constexpr):
    """Whether the list has this entry, its sequence, and the first row of its block within the sequence."""
    inside = entry < tl.load(blocks)
    sequence = tl.load(blocks + 1 + 2 * entry, mask=inside, other=0)
    return inside, sequence, tl.load(blocks + 2 + 2 * entry, mask=inside, other=0) * BLOCK


@triton.jit
def extent(cu_seqlens, sequence, B, rest):
    """First row and number of rows of a sequence; number B has ``rest`` as its end."""
    start = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1, mask=sequence < B, other=rest)
    return start.to(tl.int64), tl.maximum(end - start, 0)


@triton.jit
def prefix_of(prefix_lengths, sequence, B):
    """How many keys all queries of a sequence see; 0 where there are no prefixes."""
    if prefix_lengths is None:
        return tl.zeros([], tl.int32)
    else:
        return tl.load(prefix_lengths + sequence, mask=sequence < B, other=0)


@triton.jit
def load_rows(
    start, stride, first, count, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr
):
    """``(BLOCK, BLOCK_D)``: row ``first`` and following from ``start`` on, 0 from row ``count`` on."""
    rows, d = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    where = (rows < count)[:, None]
    if D != BLOCK_D:
        where = where & (d < D)[None, :]
    block = tl.load(start + rows[:, None].to(tl.int64) * stride + d[None, :], mask=where, other=0.0)
    return block.to(tl.float32) if UPCAST else block


@triton.jit
def store_rows(start, stride, first, count, block, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of :func:`load_rows`."""
    rows, d = first + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    where = (rows < count)[:, None]
    if D != BLOCK_D:
        where = where & (d < D)[None, :]
    tl.store(start + rows[:, None].to(tl.int64) * stride + d[None, :], block.to(start.dtype.element_ty), mask=where)


@triton.jit
def load_base(lse, rows, count):
    """Base-2 logarithm of each row's sum; inf where there is none, so that its weights are 0."""
    value = tl.load(lse + rows, mask=rows < count, other=float("-inf"))
    return tl.where(value == float("-inf"), float("inf"), value * 1.4426950408889634)


@triton.jit
def products(
    a, stride_a, first_a, count_a, block_a, b, stride_b, first_b, count_b, block_b,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Dot products of rows of ``a`` and ``b``, ``(BLOCK_A, BLOCK_B)``.

    Of the blocks as they were loaded; or, where those are too wide for the registers of a float32 product, CHUNK
    channels at a time from memory.
    """
    if CHUNK == BLOCK_D:
        return tl.dot(block_a, tl.trans(block_b), input_precision=PRECISION)
    else:
        total = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        d = tl.arange(0, CHUNK)
        rows_a, rows_b = first_a + tl.arange(0, BLOCK_A), first_b + tl.arange(0, BLOCK_B)
        for c in range(0, D, CHUNK):
            inside = (c + d < D)[None, :]
            from_a = a + rows_a[:, None].to(tl.int64) * stride_a + (c + d)[None, :]
            from_b = b + rows_b[:, None].to(tl.int64) * stride_b + (c + d)[None, :]
            part_a = tl.load(from_a, mask=(rows_a < count_a)[:, None] & inside, other=0.0)
            part_b = tl.load(from_b, mask=(rows_b < count_b)[:, None] & inside, other=0.0)
            if UPCAST:
                part_a, part_b = part_a.to(tl.float32), part_b.to(tl.float32)
            total = tl.dot(part_a, tl.trans(part_b), total, input_precision=PRECISION)
        return total


@triton.jit
def visible(rows, columns, window, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Which keys ``columns`` the queries ``rows`` see, one of the two a row and the other a column of indices."""
    shift, keys, prefix, left, right = window
    last = rows * 0 + (keys - 1)
    if RIGHT:
        last = tl.minimum(rows + (shift + right), last)
    seen = columns <= tl.maximum(last, tl.minimum(prefix, keys) - 1)
    if LEFT:
        seen = seen & ((columns >= rows + (shift - left)) | (columns < prefix))
    return seen


@triton.jit
def key_tiles(first, window, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tiles of keys that a block of queries sees: how many it sees whole, the end of all, where a gap is and its size.

    With a left window none counts as seen whole; between the prefix and the window lies a gap.
    """
    shift, keys, prefix, left, right = window
    low = first + shift  # the key at which the first query stands
    whole, end = keys // BLOCK_N, keys
    if RIGHT:
        whole = tl.minimum(whole, tl.maximum(low + right + 1, 0) // BLOCK_N)
        end = tl.minimum(keys, tl.maximum(low + BLOCK_M + right, prefix))
    tiles = tl.cdiv(tl.maximum(end, 0), BLOCK_N)
    shown = tl.cdiv(tl.minimum(prefix, keys), BLOCK_N)
    gap = shown * 0
    if LEFT:
        whole = whole * 0
        gap = tl.minimum(tl.maximum(tl.maximum(low - left, 0) // BLOCK_N - shown, 0), tl.maximum(tiles - shown, 0))
    return whole, tiles - gap, shown, gap


@triton.jit
def query_tiles(
    first, queries, window, LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Tiles of queries that see some key of a block: the first, the first from which on all is seen, and the end."""
    shift, _, prefix, left, right = window
    begin, whole, end = first * 0, first * 0, queries
    if RIGHT:
        begin = tl.maximum(first - right - shift, 0)
        whole = tl.maximum(first + BLOCK_N - 1 - right - shift, 0)
    if LEFT:
        end = tl.minimum(queries, tl.maximum(first + BLOCK_N + left - shift, 0))
    in_prefix = first < prefix
    begin, end = tl.where(in_prefix, 0, begin) // BLOCK_M, tl.cdiv(tl.where(in_prefix, queries, end), BLOCK_M)
    whole = end if LEFT else tl.minimum(tl.cdiv(whole, BLOCK_M), end)
    return tl.minimum(begin, whole), whole, end


def block_list(cu_seqlens: Tensor, rows: int, block: int, *, last_first: bool) -> tuple[Tensor, int]:
    """The list, ``(1 + 2 n,)`` int32: its length, then (sequence, index of the block) of each; and n, its bound."""
    batch = cu_seqlens.shape[0] - 1
    size = triton.cdiv(rows, block) + batch + 1
    blocks = torch.empty(1 + 2 * size, dtype=torch.int32, device=cu_seqlens.device)
    _block_list_kernel[(batch + 1,)](
        cu_seqlens, blocks, batch, rows, last_first, block, INTERPRETED=common.INTERPRETED, num_warps=4
    )
    return blocks, size
