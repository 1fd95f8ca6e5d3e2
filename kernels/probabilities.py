"""Logits and probabilities in kernels that draw: as whole numbers in the same order, and as shares of a sum."""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels import tape

_WEIGHT = tl.constexpr(tape.WEIGHT)


@triton.jit
def ordered(x):
    """float32 numbers as whole ones in the order of the floats."""
    bits = (x + 0.0).to(tl.uint32, bitcast=True)  # + 0.0: both zeros have the same bits
    return bits ^ tl.where(bits >> 31 == 0, 0x80000000, 0xFFFFFFFF)


@triton.jit
def float_of(key):
    """The float32 number that ``ordered`` turned into this one."""
    return (key ^ tl.where(key >> 31 == 0, 0xFFFFFFFF, 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def lowest(keys, amounts, goal, BITS: tl.constexpr):
    """The largest key from which on the amounts reach the goal, or a lower one that lets in nothing more; else 0."""
    least, bit, reached = tl.zeros([], tl.uint32), tl.full([], BITS - 1, tl.int32), goal - 1
    while (bit >= 0) & (reached != goal):
        key = least | (tl.full([], 1, tl.uint32) << bit.to(tl.uint32))
        amount = tl.sum(tl.where(keys >= key, amounts, 0), 0)
        least, reached = tl.where(amount >= goal, key, least), tl.where(amount >= goal, amount, reached)
        bit -= 1
    return least


@triton.jit
def share(x, total):
    """Exponentials as probabilities: 0 where there is none, so that a row with NaN has no weight at all."""
    x = tl.div_rn(x, total)
    return tl.where(x > 0.0, x, 0.0)


@triton.jit
def weigh(p):
    """Probabilities as whole numbers, rounded down: their sum is exact in any order."""
    return (p * _WEIGHT).to(tl.int64)
