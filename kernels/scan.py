"""The scan of all codes in half precision, and what it proves: kernels of ``nearest_code``, whose file explains them.

``_scan_kernel``: one program takes BLOCK_N vectors past a stretch of the codes on tensor cores and keeps the two
smallest scores ``t_k = 2^a h_k - p.q_k`` of each. The low bits of a score are overwritten by its column, so that the
index costs no comparison; that and the last rounding move t by at most ``PACK |t|``. Padding is infinite and, with a
column in its low bits, NaN, which ``minimum`` drops and the NaN-keeping ``maximum`` passes on: so it wins nothing.

``_certify_kernel`` merges the stretches. Code k may be nearest only if ``t_k - PACK |t_k|`` is within the limit
``t_min + PACK |t_min| + margin``. If that leaves one code it is the answer; if it leaves the first codes of several
stretches they are noted as candidates; a stretch whose second it leaves is scanned again by ``_rescan_kernel``, which
notes every code within the limit. Counters are integers, so that the order of programs decides nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels.common import bound
from dqcore.kernels.tokens import locate


@triton.jit
def _two_smallest(a, b, c, d):
    """The two smallest of two ordered pairs; NaN stands for infinity."""
    larger = tl.maximum(a, c, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(a, c), tl.minimum(tl.minimum(b, d), larger)


@triton.jit
def _row_minima(low, high, BLOCK_N: tl.constexpr, PAIRS: tl.constexpr, INTERPRETED: tl.constexpr):
    """The two smallest of each row of ordered pairs; halved step by step where a reduction of pairs is interpreted."""
    if not INTERPRETED:
        return tl.reduce((low, high), 1, _two_smallest)
    elif PAIRS == 1:
        return tl.reshape(low, [BLOCK_N]), tl.reshape(high, [BLOCK_N])
    else:
        a, c = tl.split(tl.reshape(low, [BLOCK_N, PAIRS // 2, 2]))
        b, d = tl.split(tl.reshape(high, [BLOCK_N, PAIRS // 2, 2]))
        low, high = _two_smallest(a, b, c, d)
        return _row_minima(low, high, BLOCK_N, PAIRS // 2, INTERPRETED)


@triton.jit
def _columns(BLOCK_K: tl.constexpr, INTERPRETED: tl.constexpr):
    """0 to BLOCK_K, kept in registers: left to itself the compiler computes a column anew for every score."""
    if INTERPRETED:
        return tl.arange(0, BLOCK_K)
    else:
        column = tl.arange(0, BLOCK_K)
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [column], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _tag(score, column, BLOCK_K: tl.constexpr, INTERPRETED: tl.constexpr):
    """``score`` with its low bits overwritten by its column: one instruction, where the compiler finds two."""
    bits, column = tl.broadcast(score.to(tl.int32, bitcast=True), column[None, :])
    if INTERPRETED:
        tagged = ((bits & -BLOCK_K) | column).to(tl.float32, bitcast=True)
        return tl.where(tagged == tagged, tagged, float("inf"))  # Triton 3.6 interprets minimum as keeping NaN
    else:
        high = tl.full(bits.shape, -BLOCK_K, tl.int32)
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [bits, high, column], dtype=tl.int32, is_pure=True, pack=1
        )  # (bits & high) | column
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def _scores(
    vectors, values, squares, row, inside, x, scale, first,
    W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``t`` of the BLOCK_K codes from ``first`` on; ``x`` holds the vectors if they fit one step."""
    k, d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    score = tl.load(squares + first + k)[None, :] * scale[:, None]
    for step in range(0, W, BLOCK_D):
        if W > BLOCK_D:
            x = tl.load(vectors + row[:, None] * W + step + d[None, :], mask=inside[:, None], other=0.0)
        code = tl.load(values + ((first + k)[None, :] * W + step + d[:, None]))
        if UPCAST:
            score = tl.dot(x.to(tl.float32), code.to(tl.float32), score, input_precision="ieee")
        else:
            score = tl.dot(x, code, score)
    return score


@triton.jit(do_not_specialize=["first", "N", "room", "span"])
def _scan_kernel(
    vectors, scales, values, squares, count, best, second, codes, first, N, room, K, span,
    W: tl.constexpr, UPCAST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    if count is not None:
        N = tl.minimum(N, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    if first + begin >= N:
        return
    row = begin + tl.arange(0, BLOCK_N)
    inside = first + row < N
    x = tl.load(vectors + row[:, None] * W + tl.arange(0, BLOCK_D)[None, :], mask=inside[:, None], other=0.0)
    scale = tl.load(scales + row, mask=inside, other=1.0)
    column = _columns(BLOCK_K, INTERPRETED)
    smallest = tl.full([BLOCK_N], float("inf"), tl.float32)
    following = tl.full([BLOCK_N], float("inf"), tl.float32)
    block = tl.zeros([BLOCK_N], tl.int32)
    stretch = tl.multiple_of(tl.program_id(1) * span, BLOCK_K)
    end = tl.minimum(stretch + span, K)
    for first_code in range(bound(stretch, INTERPRETED), bound(end, INTERPRETED), BLOCK_K):
        score = _scores(vectors, values, squares, row, inside, x, scale, first_code, W, BLOCK_K, BLOCK_D, UPCAST)
        score = _tag(score, column, BLOCK_K, INTERPRETED)
        even, odd = tl.split(tl.reshape(score, [BLOCK_N, BLOCK_K // 2, 2]))
        larger = tl.maximum(even, odd, propagate_nan=tl.PropagateNan.ALL)
        low, high = _row_minima(tl.minimum(even, odd), larger, BLOCK_N, BLOCK_K // 2, INTERPRETED)
        block = tl.where(low < smallest, first_code, block)
        smallest, following = _two_smallest(smallest, following, low, high)
    out = tl.program_id(1).to(tl.int64) * room + row
    code = block + (smallest.to(tl.int32, bitcast=True) & (BLOCK_K - 1))
    tl.store(codes + out, code, mask=inside)
    tl.store(best + out, smallest, mask=inside)
    tl.store(second + out, following, mask=inside)


@triton.jit(do_not_specialize=["first", "N", "room", "height", "width"])
def _certify_kernel(
    best, second, stretches, margins, cells, count, codes, pending, limits, candidates, found, rescans, numbers,
    first, N, room, height, width, SPLITS: tl.constexpr, PACK: tl.constexpr, LIST: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
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
    for s in range(SPLITS):
        low = tl.load(best + s * room + row, mask=inside, other=float("inf"))
        code = tl.where(low < smallest, tl.load(stretches + s * room + row, mask=inside, other=0), code)
        smallest = tl.minimum(smallest, low)
    if PACK is None:
        tl.store(codes + cell, code.to(tl.int64), mask=inside)
    else:
        limit = smallest + tl.abs(smallest) * PACK + tl.load(margins + row, mask=inside, other=0.0)
        sure = inside & (limit < 1e37)
        several = tl.zeros([BLOCK_N], tl.int32)  # how many codes are noted
        open_ = tl.zeros([BLOCK_N], tl.int32)  # how many stretches have more than one
        for s in range(SPLITS):
            low = tl.load(best + s * room + row, mask=inside, other=float("inf"))
            high = tl.load(second + s * room + row, mask=inside, other=float("inf"))
            again = sure & (high - tl.abs(high) * PACK <= limit)
            near = sure & (low - tl.abs(low) * PACK <= limit) & (again == 0)
            own = tl.load(stretches + s * room + row, mask=near, other=0)
            tl.store(candidates + row * LIST + several, own, mask=near & (several < LIST))
            several += near.to(tl.int32)
            open_ += again.to(tl.int32)
            more = again.to(tl.int32)
            start = tl.atomic_add(numbers + s, tl.sum(more, 0))
            tl.store(rescans + s * room + start + tl.cumsum(more, 0) - 1, row.to(tl.int32), mask=again)
        settled = sure & (several == 1) & (open_ == 0)
        tl.store(codes + cell, code.to(tl.int64), mask=settled)
        tl.store(found + row, tl.where(sure, several, LIST + 1), mask=inside)
        tl.store(limits + row, limit, mask=inside)
        left = (inside & (settled == 0)).to(tl.int32)
        start = tl.atomic_add(numbers + SPLITS, tl.sum(left, 0))
        tl.store(pending + start + tl.cumsum(left, 0) - 1, row.to(tl.int32), mask=left > 0)


@triton.jit(do_not_specialize=["room", "span", "part"])
def _rescan_kernel(
    vectors, scales, values, squares, limits, rescans, numbers, candidates, found, room, K, span, part,
    W: tl.constexpr, LIST: tl.constexpr, UPCAST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program takes every so many blocks of a stretch's list past one part of the stretch."""
    stretch = tl.program_id(1)
    number = tl.load(numbers + stretch)
    begin = tl.multiple_of(stretch * span + tl.program_id(2) * part, BLOCK_K)
    end = tl.minimum(tl.minimum(begin + part, (stretch + 1) * span), K)
    rescans += stretch.to(tl.int64) * room
    own, jump = tl.program_id(0) * BLOCK_N, tl.num_programs(0) * BLOCK_N
    for i in range(bound(own, INTERPRETED), bound(number, INTERPRETED), bound(jump, INTERPRETED)):
        position = i + tl.arange(0, BLOCK_N)
        inside = position < number
        row = tl.load(rescans + position, mask=inside, other=0).to(tl.int64)
        x = tl.load(vectors + row[:, None] * W + tl.arange(0, BLOCK_D)[None, :], mask=inside[:, None], other=0.0)
        scale = tl.load(scales + row, mask=inside, other=1.0)
        limit = tl.load(limits + row, mask=inside, other=float("-inf"))
        for first_code in range(bound(begin, INTERPRETED), bound(end, INTERPRETED), BLOCK_K):
            score = _scores(vectors, values, squares, row, inside, x, scale, first_code, W, BLOCK_K, BLOCK_D, UPCAST)
            near = score - tl.abs(score) * 2.4e-7 <= limit[:, None]
            code = tl.broadcast_to((first_code + tl.arange(0, BLOCK_K))[None, :], [BLOCK_N, BLOCK_K])
            counter = tl.broadcast_to((found + row)[:, None], [BLOCK_N, BLOCK_K])
            slot = tl.atomic_add(counter, 1, mask=near)
            tl.store(candidates + row[:, None] * LIST + slot, code, mask=near & (slot < LIST))
