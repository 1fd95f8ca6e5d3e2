"""Products of tiles in attention kernels: of half precision, and the ways to multiply float32.

``"bf16x6"`` splits each number into three of bfloat16, whose 24 bits are those of float32, and multiplies six pairs of
them: what it leaves out is below 2^-24 of the factors, where three TF32 products leave out 2^-22. On Hopper bfloat16 is
twice as fast as TF32, and a part that is split from registers needs no second pass through shared memory as TF32 does.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels.common import multiplicand


@triton.jit
def split(block):
    """Three bfloat16 numbers for each float32, largest first, whose sum it is."""
    high = block.to(tl.bfloat16)
    rest = block - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return multiplicand(high), multiplicand(middle), multiplicand(low)


@triton.jit
def product(a, b, total, KIND: tl.constexpr):
    """``total + a b``, with float32 multiplied as ``KIND.PRECISION`` says."""
    if a.dtype == tl.float32 and KIND.PRECISION == "bf16x6":
        a_high, a_middle, a_low = split(a)
        b_high, b_middle, b_low = split(b)
        total = tl.dot(a_low, b_high, total)  # smallest first
        total = tl.dot(a_middle, b_middle, total)
        total = tl.dot(a_high, b_low, total)
        total = tl.dot(a_middle, b_high, total)
        total = tl.dot(a_high, b_middle, total)
        return tl.dot(a_high, b_high, total)
    else:
        return tl.dot(a, b, total, input_precision=KIND.PRECISION)


@triton.jit
def products(
    a, first_a, block_a, b, first_b, block_b,
    KIND: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Dot products ``(BLOCK_A, BLOCK_B)`` of rows of two matrices, from ``first_a`` and ``first_b`` on.

    ``block_a`` and ``block_b`` are these rows as they were loaded. If CHUNK is below their width, a float32 product of
    whole rows would not fit the registers, and CHUNK channels at a time are loaded again instead.
    """
    if block_a.shape[1] == CHUNK:
        nothing = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        return product(block_a, tl.trans(block_b), nothing, KIND)  # (BLOCK_A, BLOCK_B)
    else:
        start_a, stride_a, count_a = a
        start_b, stride_b, count_b = b
        total = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        d = tl.arange(0, CHUNK)
        rows_a, rows_b = first_a + tl.arange(0, BLOCK_A), first_b + tl.arange(0, BLOCK_B)
        for c in range(0, KIND.D, CHUNK):
            inside = (c + d < KIND.D)[None, :]
            from_a = start_a + rows_a[:, None].to(tl.int64) * stride_a + (c + d)[None, :]
            from_b = start_b + rows_b[:, None].to(tl.int64) * stride_b + (c + d)[None, :]
            part_a = tl.load(from_a, mask=(rows_a < count_a)[:, None] & inside, other=0.0)  # (BLOCK_A, CHUNK)
            part_b = tl.load(from_b, mask=(rows_b < count_b)[:, None] & inside, other=0.0)  # (BLOCK_B, CHUNK)
            part_a, part_b = multiplicand(part_a), multiplicand(part_b)
            total = product(part_a, tl.trans(part_b), total, KIND)  # (BLOCK_A, BLOCK_B)
        return total
