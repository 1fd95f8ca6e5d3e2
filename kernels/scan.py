"""The scan of all codes in half precision, and what it settles: kernels of ``nearest_code``, whose file explains them.

The scan takes BLOCK_N vectors past a stretch of the codes on tensor cores and keeps the two smallest scores of each
vector. To keep a code's index along with its score at no cost, the low bits of the score are overwritten with the
column of the code in its block. That and the last rounding move a score t by at most ``PACK |t|``.

Certifying merges the stretches. A code may be nearest only if its score is within ``limit``: the smallest score plus
the vector's margin and what packing may have moved. If one code is left it is the answer. If each stretch has at most
one left, these are noted as candidates. A stretch with two or more left is scanned again, and every code of it that is
within the limit is noted. All counters are integers, so the order of programs does not change the result. Derivation:
``docs/exactness.md``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels.common import IN_INTERPRETER, bound, multiplicand
from dqcore.kernels.rounding import margin
from dqcore.kernels.vectors import locate


@triton.jit
def _two_smallest(a, b, c, d):
    """The two smallest of two ordered pairs. The larger of a pair may be NaN, which counts as infinity."""
    larger = tl.maximum(a, c, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(a, c), tl.minimum(tl.minimum(b, d), larger)


@triton.jit
def _row_minima(low, high, BLOCK_N: tl.constexpr):
    """The two smallest of each row of ordered pairs, ``(BLOCK_N, PAIRS)`` -> twice ``(BLOCK_N,)``.

    The interpreter is too slow at reducing pairs, so there the rows are halved step by step: in a loop, for Triton 3.4
    compiles no function that calls itself, not even where the call is left out.
    """
    if not IN_INTERPRETER:
        return tl.reduce((low, high), 1, _two_smallest)
    else:
        while low.shape[1] > 1:
            a, c = tl.split(tl.reshape(low, [BLOCK_N, low.shape[1] // 2, 2]))
            b, d = tl.split(tl.reshape(high, [BLOCK_N, high.shape[1] // 2, 2]))
            low, high = _two_smallest(a, b, c, d)
        return tl.reshape(low, [BLOCK_N]), tl.reshape(high, [BLOCK_N])


@triton.jit
def _columns(BLOCK_K: tl.constexpr):
    """0 to BLOCK_K - 1, ``(BLOCK_K,)``, kept in registers: the compiler would compute it anew for every score."""
    if IN_INTERPRETER:
        return tl.arange(0, BLOCK_K)
    else:
        column = tl.arange(0, BLOCK_K)
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [column], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _tag(score, column, BLOCK_K: tl.constexpr):
    """``score`` with its low bits overwritten by its column: one instruction, where the compiler would take two.

    A padded code's score is infinite and so becomes NaN, unless its column is 0. ``minimum`` ignores NaN, and the
    ``maximum`` of a pair keeps it, so that a padded code is never chosen.
    """
    bits, column = tl.broadcast(score.to(tl.int32, bitcast=True), column[None, :])
    if IN_INTERPRETER:
        tagged = ((bits & -BLOCK_K) | column).to(tl.float32, bitcast=True)
        return tl.where(tagged == tagged, tagged, float("inf"))  # the interpreter of Triton 3.6 keeps NaN in minimum
    else:
        high = tl.full(bits.shape, -BLOCK_K, tl.int32)
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [bits, high, column], dtype=tl.int32, is_pure=True, pack=1
        )  # (bits & high) | column
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def _scores(
    vectors, values, squares, row, inside, x, scale, first,
    W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of the vectors ``row`` and the BLOCK_K codes from ``first`` on, ``(BLOCK_N, BLOCK_K)``.

    ``x`` holds the first BLOCK_D channels of the vectors, which is all of them unless W is larger.
    """
    k, d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    square = tl.load(squares + first + k)  # (BLOCK_K,)
    score = square[None, :] * scale[:, None]
    for step in range(0, W, BLOCK_D):
        if W > BLOCK_D:
            from_x = vectors + row[:, None] * W + step + d[None, :]
            x = tl.load(from_x, mask=inside[:, None], other=0.0)  # (BLOCK_N, BLOCK_D)
        code = tl.load(values + ((first + k)[None, :] * W + step + d[:, None]))  # (BLOCK_D, BLOCK_K)
        if IN_INTERPRETER:
            score = tl.dot(multiplicand(x), multiplicand(code), score, input_precision="ieee")
        else:
            score = tl.dot(x, code, score)  # (BLOCK_N, BLOCK_K)
    return score


@triton.jit(do_not_specialize=["first", "N", "room", "span"])
def _nearest_code_scan_kernel(
    rounded, codes, count, out, first, N, room, K, span,
    W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    vectors, scales = rounded
    values, squares = codes
    best, second, nearest = out
    if count is not None:
        N = tl.minimum(N, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    if first + begin >= N:
        return
    row = begin + tl.arange(0, BLOCK_N)
    inside = first + row < N
    from_x = vectors + row[:, None] * W + tl.arange(0, BLOCK_D)[None, :]
    x = tl.load(from_x, mask=inside[:, None], other=0.0)  # (BLOCK_N, BLOCK_D)
    scale = tl.load(scales + row, mask=inside, other=1.0)  # (BLOCK_N,)
    column = _columns(BLOCK_K)
    smallest = tl.full([BLOCK_N], float("inf"), tl.float32)
    following = tl.full([BLOCK_N], float("inf"), tl.float32)
    block = tl.zeros([BLOCK_N], tl.int32)
    stretch = tl.multiple_of(tl.program_id(1) * span, BLOCK_K)
    end = tl.minimum(stretch + span, K)
    for first_code in range(bound(stretch), bound(end), BLOCK_K):
        score = _scores(vectors, values, squares, row, inside, x, scale, first_code, W, BLOCK_K, BLOCK_D)
        score = _tag(score, column, BLOCK_K)
        even, odd = tl.split(tl.reshape(score, [BLOCK_N, BLOCK_K // 2, 2]))
        larger = tl.maximum(even, odd, propagate_nan=tl.PropagateNan.ALL)
        low, high = _row_minima(tl.minimum(even, odd), larger, BLOCK_N)
        block = tl.where(low < smallest, first_code, block)
        smallest, following = _two_smallest(smallest, following, low, high)
    place = tl.program_id(1).to(tl.int64) * room + row
    code = block + (smallest.to(tl.int32, bitcast=True) & (BLOCK_K - 1))
    tl.store(nearest + place, code, mask=inside)  # (BLOCK_N,)
    tl.store(best + place, smallest, mask=inside)  # (BLOCK_N,)
    tl.store(second + place, following, mask=inside)  # (BLOCK_N,)


@triton.jit(do_not_specialize=["first", "N", "room", "height", "width"])
def _nearest_code_certify_kernel(
    scanned, rounded, prepared, cells, count, codes, limits, lists, first, N, room, height, width, ERROR,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, PACK: tl.constexpr, LIST: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store the codes that are sure, and list the vectors and stretches that are not.

    If PACK is None the smallest score decides, and only vectors without a finite margin are listed.
    """
    best, second, nearest = scanned
    if count is not None:
        N = tl.minimum(N, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    if first + begin >= N:
        return
    row = begin + tl.arange(0, BLOCK_N)
    inside = first + row < N
    _, cell, _, _, _ = locate(first + row, inside, cells, height, width)
    smallest = tl.full([BLOCK_N], float("inf"), tl.float32)
    code = tl.zeros([BLOCK_N], tl.int32)
    for s in range(SPLITS):  # every load and store below is (BLOCK_N,)
        low = tl.load(best + s * room + row, mask=inside, other=float("inf"))
        code = tl.where(low < smallest, tl.load(nearest + s * room + row, mask=inside, other=0), code)
        smallest = tl.minimum(smallest, low)
    candidates, found, rescans, numbers, pending = lists
    apart = margin(rounded, prepared, row, inside, ERROR, SPLIT)
    if PACK is None:
        sure = inside & (apart < float("inf")) & (smallest < float("inf"))
        settled = sure
        several = sure.to(tl.int32)
    else:
        limit = smallest + tl.abs(smallest) * PACK + apart
        sure = inside & (limit < 1e37)
        several = tl.zeros([BLOCK_N], tl.int32)  # how many codes are noted
        open_ = tl.zeros([BLOCK_N], tl.int32)  # how many stretches have more than one
        for s in range(SPLITS):
            low = tl.load(best + s * room + row, mask=inside, other=float("inf"))
            high = tl.load(second + s * room + row, mask=inside, other=float("inf"))
            again = sure & (high - tl.abs(high) * PACK <= limit)
            near = sure & (low - tl.abs(low) * PACK <= limit) & (again == 0)
            own = tl.load(nearest + s * room + row, mask=near, other=0)
            tl.store(candidates + row * LIST + several, own, mask=near & (several < LIST))
            several += near.to(tl.int32)
            open_ += again.to(tl.int32)
            more = again.to(tl.int32)
            start = tl.atomic_add(numbers + s, tl.sum(more, 0))
            tl.store(rescans + s * room + start + tl.cumsum(more, 0) - 1, row.to(tl.int32), mask=again)
        settled = sure & (several == 1) & (open_ == 0)
        tl.store(limits + row, limit, mask=inside)
    tl.store(codes + cell, code.to(tl.int64), mask=settled)
    tl.store(found + row, tl.where(sure, several, LIST + 1), mask=inside)
    left = (inside & (settled == 0)).to(tl.int32)
    start = tl.atomic_add(numbers + SPLITS, tl.sum(left, 0))
    tl.store(pending + start + tl.cumsum(left, 0) - 1, row.to(tl.int32), mask=left > 0)


@triton.jit(do_not_specialize=["room", "span", "part"])
def _nearest_code_rescan_kernel(
    rounded, codes, limits, lists, room, K, span, part,
    W: tl.constexpr, LIST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Note every code within the limit, in the stretches that have several.

    A program scans one part of a stretch, for each ``num_programs``-th block of the vectors in the stretch's list.
    """
    vectors, scales = rounded
    values, squares = codes
    candidates, found, rescans, numbers, _ = lists
    stretch = tl.program_id(1)
    number = tl.load(numbers + stretch)
    begin = tl.multiple_of(stretch * span + tl.program_id(2) * part, BLOCK_K)
    end = tl.minimum(tl.minimum(begin + part, (stretch + 1) * span), K)
    rescans += stretch.to(tl.int64) * room
    own, jump = tl.program_id(0) * BLOCK_N, tl.num_programs(0) * BLOCK_N
    for i in range(bound(own), bound(number), bound(jump)):
        position = i + tl.arange(0, BLOCK_N)
        inside = position < number
        row = tl.load(rescans + position, mask=inside, other=0).to(tl.int64)  # (BLOCK_N,)
        from_x = vectors + row[:, None] * W + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(from_x, mask=inside[:, None], other=0.0)  # (BLOCK_N, BLOCK_D)
        scale = tl.load(scales + row, mask=inside, other=1.0)  # (BLOCK_N,)
        limit = tl.load(limits + row, mask=inside, other=float("-inf"))  # (BLOCK_N,)
        for first_code in range(bound(begin), bound(end), BLOCK_K):
            score = _scores(vectors, values, squares, row, inside, x, scale, first_code, W, BLOCK_K, BLOCK_D)
            near = score - tl.abs(score) * 2.4e-7 <= limit[:, None]
            code = tl.broadcast_to((first_code + tl.arange(0, BLOCK_K))[None, :], [BLOCK_N, BLOCK_K])
            counter = tl.broadcast_to((found + row)[:, None], [BLOCK_N, BLOCK_K])
            index = tl.atomic_add(counter, 1, mask=near)  # (BLOCK_N, BLOCK_K)
            to = candidates + row[:, None] * LIST + index
            tl.store(to, code, mask=near & (index < LIST))  # (BLOCK_N, BLOCK_K)
