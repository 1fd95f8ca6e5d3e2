"""Drawing an index from each row of logits. A program has one row: in registers, or block by block where it is long.

The ``top_k``-th largest logit and the least probability of the nucleus are found bit by bit: floats become whole
numbers in the same order, and of those the largest is sought from which on a row still reaches a goal. That takes at
most a turn for each bit, one sum over the row each, and no sort. Whatever the logits are, NaN included, the index is a
valid one. Reference: ``dqcore.ops.draw``, but for the rounding of exponentials and of their sum.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import tape
from dqcore.kernels.common import on_device, widen
from dqcore.kernels.draw_long import draw_long
from dqcore.kernels.probabilities import lowest, ordered, share, weigh

#: The longest row that a program holds: of 16,384 numbers of 64 bits some would lie on the stack.
LONGEST = 8192
#: What a program holds of a longer one, and its warps: with 16 of them, some targets' kernels need the stack.
LONG_BLOCK, LONG_WARPS = 4096, 8
_BITS = tl.constexpr(tape.BITS)


def is_long(count: int) -> bool:
    """Whether a row of ``count`` is walked block by block."""
    return count > LONGEST


def settings(temperature: float, top_k: int | None, top_p: float, count: int) -> tuple[float, int | None, int | None]:
    """How to draw from ``count`` logits, as kernels take it: None for a step that changes nothing."""
    kept = None if top_k is None or top_k >= count else top_k
    return temperature, kept, math.ceil(top_p * tape.WEIGHT) if top_p < 1 else None


def options(count: int) -> dict[str, int]:
    """Constants and options of a launch whose programs have rows of ``count``."""
    if is_long(count):
        # without a limit of ours ptxas may spill to fit two blocks a multiprocessor
        return {"BLOCK": LONG_BLOCK, "num_warps": LONG_WARPS, "maxnreg": 255}
    block = max(128, triton.next_power_of_2(count))
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 8)}


@triton.jit
def load_logits(logits, row, rows, column, mask, guidance):
    """Logits of a row in float32, -inf where the mask is False; those of a second copy, ``rows`` below, guide them."""
    start, stride = logits
    x = widen(tl.load(start + row * stride + column, mask=mask, other=0.0))
    if guidance is not None:
        without = widen(tl.load(start + (row + rows) * stride + column, mask=mask, other=0.0))
        gap = x - without
        x = tl.where(tl.abs(guidance) < 0.5, without + guidance * gap, x - gap * (1.0 - guidance))
    return tl.where(mask, x, float("-inf"))


@triton.jit
def draw_index(x, count, number, temperature, top_k, goal):
    """An index below ``count`` for logits ``x (BLOCK,)``, which are -inf from there on."""
    x = tl.div_rn(x, temperature)
    if top_k is not None:
        keys = ordered(x)
        x = tl.where(keys >= lowest(keys, tl.full(keys.shape, 1, tl.int32), top_k, 32), x, float("-inf"))
    x = tl.exp(x - tl.max(x, 0))
    x = share(x, tl.sum(x, 0))
    weights = weigh(x)
    if goal is not None:
        keys = x.to(tl.uint32, bitcast=True)  # below 2**30, as probabilities are at most 1
        weights = tl.where(keys >= lowest(keys, weights, goal.to(tl.int64), 30), weights, 0)
    threshold = tl.sum(weights, 0) * number >> _BITS
    return tl.minimum(tl.sum((tl.cumsum(weights, 0) <= threshold).to(tl.int32), 0), count - 1)


@triton.jit(do_not_specialize=["V", "temperature", "top_k", "goal"])
def _draw_kernel(logits, numbers, out, V, temperature, top_k, goal, BLOCK: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = load_logits(logits, row, 0, i, i < V, None)  # (BLOCK,)
    start, stride = numbers
    tl.store(out + row, draw_index(x, V, tl.load(start + row * stride), temperature, top_k, goal).to(tl.int64))


@triton.jit
def load_block(source, i):
    """Logits ``i`` of a row, as ``draw_long`` asks for them."""
    logits, row, rows, count, guidance = source
    return load_logits(logits, row, rows, i, i < count, guidance)


@triton.jit(do_not_specialize=["V", "temperature", "top_k", "goal"])
def _draw_long_kernel(logits, numbers, out, V, temperature, top_k, goal, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start, stride = numbers
    number = tl.load(start + row * stride)
    index = draw_long(load_block, (logits, row, 0, V, None), V, number, temperature, top_k, goal, BLOCK)
    tl.store(out + row, tl.minimum(index, V - 1).to(tl.int64))


def draw_fwd(logits: Tensor, numbers: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """``logits (S, V)`` and random numbers ``(S,)`` -> indices ``(S,)`` int64."""
    rows, count = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    kernel = _draw_long_kernel if is_long(count) else _draw_kernel
    if rows:
        with on_device(logits):
            kernel[(rows,)](
                *(close_rows(logits), (numbers, numbers.stride(0)), out, count),
                *settings(temperature, top_k, top_p, count),
                **options(count),
                enable_fp_fusion=True,
            )
    return out


def close_rows(logits: Tensor) -> tuple[Tensor, int]:
    """Logits of which those of a row lie side by side, and the stride of rows."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    return logits, logits.stride(0)
