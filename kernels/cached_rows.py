"""Keys and values as a cache keeps them: in the queries' dtype, in bfloat16, or as 8-bit integers with a scale a row.

A *row* is the key or the value of one token and one head. Its integers are ``rint(x * (127 / largest))``, its scale is
``largest * (1 / 127)``, where ``largest`` is the row's largest magnitude. The specification is ``quantized`` in
``dqcore/ops/reference/decode_attention.py``. A GPU's quotient may be 2 units in the last place off, a slower one would
take the registers of the loop over keys; so a number that lies within 1e-5 between two integers may become the other.
There is a clamp between product and rounding, so that no compiler makes one operation of the two.

*Rows* below are two matrices of ``sequences``: the numbers, and their scales, which are looked at for integers alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels.common import IN_INTERPRETER, bound, widen
from dqcore.kernels.sequences import load_rows, store_rows

#: Rows whose largest magnitude is below this are kept as zeros: ``127 / largest`` would leave float32. 2 ** -120.
SMALLEST = tl.constexpr(7.52316384526264e-37)
STEP = tl.constexpr(1 / 127)
#: 1.5 * 2 ** 23: adding it to a small float32 number and taking it away again rounds to the nearest integer.
ROUNDS = tl.constexpr(12582912.0)


@triton.jit
def rows_of(x, slot, head, count):
    """The rows of one slot and head; ``x`` is numbers and scales, each a pointer with strides of slots, rows, heads."""
    numbers, scales = x
    start, stride_slot, stride_row, stride_head = numbers
    matrix = (start + slot * stride_slot + head * stride_head, stride_row, count)
    start, stride_slot, stride_row, stride_head = scales
    return matrix, (start + slot * stride_slot + head * stride_head, stride_row, count)


@triton.jit
def quantize(block):
    """Rows ``(n, d)`` as 8-bit integers, and their scales ``(n,)``."""
    block = widen(block)
    largest = tl.max(tl.where(block == block, tl.abs(block), float("inf")), 1)
    finite = largest < float("inf")
    fits = finite & (largest >= SMALLEST)
    inverse = 127.0 / tl.where(fits, largest, 1.0)
    scale = tl.where(fits, largest * STEP, tl.where(finite, 0.0, float("nan")))
    steps = tl.minimum(tl.maximum(block * inverse[:, None], -127.0), 127.0)
    steps = tl.where(fits[:, None], (steps + ROUNDS) - ROUNDS, 0.0)
    return steps.to(tl.int8), scale


@triton.jit
def load_cached(rows, first, DTYPE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``BLOCK`` rows from ``first`` on as a cache of this dtype has or will have them; their scales, 1 for floats."""
    matrix, scales = rows
    block = load_rows(matrix, first, BLOCK, D, BLOCK_D)  # (BLOCK, BLOCK_D)
    if tl.int8 != DTYPE:
        return block.to(DTYPE), tl.full([BLOCK], 1.0, tl.float32)
    elif block.dtype != DTYPE:
        return quantize(block)
    else:
        start, stride, count = scales
        row = first + tl.arange(0, BLOCK)
        return block, tl.load(start + row.to(tl.int64) * stride, mask=row < count, other=0.0)  # (BLOCK,)


@triton.jit
def as_loaded(block):
    """Integers, four to a register.

    Without this the compiler reads a factor of ``tl.dot`` from shared memory in the order in which tensor cores take
    it, which for values of 8 bits is byte by byte.
    """
    if IN_INTERPRETER or block.dtype != tl.int8:
        return block
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [block], dtype=tl.int8, is_pure=False, pack=4)


@triton.jit
def append_rows(
    cache, new, used, room, DTYPE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Keep the first ``room`` of the ``new`` rows behind the ``used`` rows of a cache."""
    matrix, scales = cache
    start, stride, _ = matrix
    to, stride_scale, _ = scales
    free = (start + used.to(tl.int64) * stride, stride, room)
    for first in range(0, bound(room), BLOCK):
        block, scale = load_cached(new, first, DTYPE, BLOCK, D, BLOCK_D)
        store_rows(free, first, block, BLOCK, D, BLOCK_D)  # (BLOCK, BLOCK_D)
        if tl.int8 == DTYPE:
            row = first + tl.arange(0, BLOCK)
            tl.store(to + (used + row).to(tl.int64) * stride_scale, scale, mask=row < room)  # (BLOCK,)
