"""A bias and exact GELU in one pass each way; the backward pass also adds up the bias' gradient.

Sums over the rows of a chunk, whose size is fixed, are added up afterwards. Reference: ``dqcore.ops.bias_gelu``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import cdiv, narrow, on_device, widen
from dqcore.kernels.launch import launch

BLOCK_D = 256
BLOCK_M = 8
CHUNK = 64  # rows of a program of the backward pass
WARPS = 4


@triton.jit(do_not_specialize=["N"])
def _bias_gelu_fwd_kernel(x, bias, out, N, D, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at, inside = rows.to(tl.int64)[:, None] * D + channels[None, :], (rows < N)[:, None] & (channels < D)[None, :]
    offset = widen(tl.load(bias + channels, mask=channels < D, other=0.0))
    value = widen(tl.load(x + at, mask=inside, other=0.0)) + offset[None, :]
    tl.store(out + at, narrow(value * _normal(value), out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])
def _bias_gelu_bwd_kernel(
    grad, x, bias, grad_x, parts, N, D, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    channels = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = channels < D
    offset = widen(tl.load(bias + channels, mask=real, other=0.0))
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, CHUNK, BLOCK_M):
        rows = tl.program_id(0) * CHUNK + start + tl.arange(0, BLOCK_M)
        at, inside = rows.to(tl.int64)[:, None] * D + channels[None, :], (rows < N)[:, None] & real[None, :]
        value = widen(tl.load(x + at, mask=inside, other=0.0)) + offset[None, :]
        density = tl.exp(-0.5 * value * value) * 0.3989422804014327
        slope = widen(tl.load(grad + at, mask=inside, other=0.0)) * (_normal(value) + value * density)
        tl.store(grad_x + at, narrow(slope, grad_x.dtype.element_ty), mask=inside)
        total += tl.where(inside, slope, 0.0)
    tl.store(parts + tl.program_id(0).to(tl.int64) * D + channels, tl.sum(total, 0), mask=real)


@triton.jit
def _normal(value):
    """The probability that a normal variable is below ``value``."""
    return 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))


def bias_gelu_fwd(x: Tensor, bias: Tensor) -> Tensor:
    """``x (N, D)`` and ``bias (D,)`` -> ``gelu(x + bias)``, in ``x``'s dtype."""
    rows, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows:
        grid = (cdiv(rows, BLOCK_M), cdiv(channels, BLOCK_D))
        with on_device(x):
            launch(_bias_gelu_fwd_kernel, grid)(
                *(x.contiguous(), bias.contiguous(), out, rows, channels),
                **{"BLOCK_M": BLOCK_M, "BLOCK_D": BLOCK_D, "num_warps": WARPS, "enable_fp_fusion": True},
            )
    return out


def bias_gelu_bwd(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x (N, D)`` and of ``bias (D,)``, this one in float32."""
    rows, channels = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chunks = cdiv(rows, CHUNK)
    parts = torch.empty(chunks, channels, dtype=torch.float32, device=x.device)
    if rows:
        with on_device(x):
            launch(_bias_gelu_bwd_kernel, (chunks, cdiv(channels, BLOCK_D)))(
                *(grad.contiguous(), x.contiguous(), bias.contiguous(), grad_x, parts, rows, channels),
                **{"CHUNK": CHUNK, "BLOCK_M": BLOCK_M, "BLOCK_D": BLOCK_D, "num_warps": WARPS},
                enable_fp_fusion=True,
            )
    return grad_x, parts.sum(0)
