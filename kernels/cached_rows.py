"""Keys and values as a cache keeps them: in the queries' dtype, in bfloat16, or as 8-bit integers with a scale a row.

A *row* is the key or the value of one token and one head. Its integers are ``rint(x * (127 / largest))``, its scale is
``largest / 127``, where ``largest`` is the row's largest magnitude. The specification is ``quantized`` in
``dqcore/ops/reference/decode_attention.py``, whose numbers these are bit for bit: there is a clamp between the product
and the rounding, so that no compiler makes one operation of the two.

*Rows* below are a matrix of ``sequences`` and, for integers, where the scales of its rows lie: a pointer and a stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels.common import bound, widen
from dqcore.kernels.sequences import load_rows, store_rows

#: Rows whose largest magnitude is below this are kept as zeros: ``127 / largest`` would leave float32. 2 ** -120.
SMALLEST = tl.constexpr(7.52316384526264e-37)
#: 1.5 * 2 ** 23: adding it to a small float32 number and taking it away again rounds to the nearest integer, ties to even.
ROUNDS = tl.constexpr(12582912.0)


@triton.jit
def quantize(block, DTYPE: tl.constexpr):
    """Rows ``(n, d)`` as a cache of this dtype keeps them, and their scales ``(n,)``, None but for integers."""
    if DTYPE == tl.int8:
        block = widen(block)
        largest = tl.max(tl.where(block == block, tl.abs(block), float("inf")), 1)
        finite = largest < float("inf")
        fits = finite & (largest >= SMALLEST)
        inverse = tl.where(fits, tl.div_rn(127.0, tl.where(fits, largest, 1.0)), 0.0)
        scale = tl.where(fits, tl.div_rn(largest, 127.0), tl.where(finite, 0.0, float("nan")))
        steps = tl.minimum(tl.maximum(block * inverse[:, None], -127.0), 127.0)
        steps = tl.where(fits[:, None], (steps + ROUNDS) - ROUNDS, 0.0)
        return steps.to(tl.int8), scale
    else:
        return block.to(DTYPE), None


@triton.jit
def load_cached(rows, first, DTYPE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``BLOCK`` rows from ``first`` on and their scales, of a cache of this dtype or of what will be appended to it."""
    matrix, scales = rows
    block = load_rows(matrix, first, BLOCK, D, BLOCK_D)  # (BLOCK, BLOCK_D)
    if block.dtype != DTYPE:
        return quantize(block, DTYPE)
    elif scales is None:
        return block, None
    else:
        _, _, count = matrix
        start, stride = scales
        row = first + tl.arange(0, BLOCK)
        return block, tl.load(start + row.to(tl.int64) * stride, mask=row < count, other=0.0)  # (BLOCK,)


@triton.jit
def append_rows(
    cache, new, used, room, DTYPE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Keep the first ``room`` of the ``new`` rows behind the ``used`` rows of a cache."""
    (start, stride, _), scales = cache
    free = (start + used.to(tl.int64) * stride, stride, room)
    for first in range(0, bound(room), BLOCK):
        block, scale = load_cached(new, first, DTYPE, BLOCK, D, BLOCK_D)
        store_rows(free, first, block, BLOCK, D, BLOCK_D)  # (BLOCK, BLOCK_D)
        if scale is not None:
            to, stride_scale = scales
            row = first + tl.arange(0, BLOCK)
            tl.store(to + (used + row).to(tl.int64) * stride_scale, scale, mask=row < room)  # (BLOCK,)
