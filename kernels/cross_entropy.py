"""Cross-entropy of each row of logits, and its gradient: both read the logits once, in their own dtype.

A program has one row. Reference: ``dqcore.ops.cross_entropy``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, on_device
from dqcore.kernels.launch import launch

BLOCK = 512  # few lanes idle after the last of 1,027 logits, the most common number
WARPS = 4


@triton.jit(do_not_specialize=["stride"])
def _cross_entropy_fwd_kernel(logits, targets, losses, lse, stride, V, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, bound(V), BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + i, mask=i < V, other=float("-inf")).to(tl.float32)
        grown = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
        pivot = tl.where(grown == float("-inf"), 0.0, grown)
        total = total * tl.exp(largest - pivot) + tl.exp(x - pivot)
        largest = grown
    peak = tl.max(largest, 0)
    together = tl.log(tl.sum(total * tl.exp(largest - peak), 0)) + peak
    target = tl.load(targets + row)
    inside = (target >= 0) & (target < V)
    own = tl.load(logits + target, mask=inside, other=float("nan")).to(tl.float32)
    tl.store(losses + row, together - own)
    tl.store(lse + row, together)


@triton.jit(do_not_specialize=["stride"])
def _cross_entropy_bwd_kernel(grad, logits, targets, lse, out, stride, V, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    out += row * V
    together, target, scale = tl.load(lse + row), tl.load(targets + row), tl.load(grad + row)
    for start in range(0, bound(V), BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + i, mask=i < V).to(tl.float32)
        slope = (tl.exp(x - together) - (i == target).to(tl.float32)) * scale
        tl.store(out + i, slope.to(out.dtype.element_ty), mask=i < V)


def cross_entropy_fwd(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """``logits (N, V)`` and ``targets (N,)`` -> losses and logarithms of sums ``(N,)``, float32."""
    logits, targets = _close(logits), targets.contiguous()
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    lse = torch.empty_like(losses)
    _launch(_cross_entropy_fwd_kernel, logits, logits, targets, losses, lse)
    return losses, lse


def cross_entropy_bwd(grad: Tensor, logits: Tensor, targets: Tensor, lse: Tensor) -> Tensor:
    """``grad (N,)`` of the losses -> that of the logits, in their dtype."""
    logits, targets = _close(logits), targets.contiguous()
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _launch(_cross_entropy_bwd_kernel, logits, grad.contiguous(), logits, targets, lse, out)
    return out


def _launch(kernel: Any, logits: Tensor, *tensors: Tensor) -> None:
    """A program for each row of the logits."""
    if len(logits):
        with on_device(logits):
            launch(kernel, (len(logits),))(
                *(*tensors, logits.stride(0), logits.shape[1]), BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True
            )


def _close(logits: Tensor) -> Tensor:
    """The logits, or a copy, in which those of a row lie side by side."""
    return logits if logits.stride(1) == 1 else logits.contiguous()
