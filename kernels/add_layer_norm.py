"""A residual sum with dropout and the normalization after it, in one pass each way.

Forward reads the two summands and writes the sum and its normalization. Backward reads the two gradients and the sum,
and writes both summands' gradients; sums over rows of a chunk, whose size is fixed, are added up afterwards.
Reference: ``dqcore.ops.add_layer_norm``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import cdiv, narrow, next_power_of_2, on_device, widen
from dqcore.kernels.dropout_mask import keep_tile
from dqcore.kernels.launch import launch

#: The most channels that a program has in registers.
MOST_CHANNELS = 4096
TILE = 1024  # numbers that a program reads at once, if a row has no more
CHUNK = 32  # rows of a program of the backward pass


@triton.jit(do_not_specialize=["N"])
def _add_layer_norm_fwd_kernel(
    x, branch, weight, bias, seed, total, normed, statistics, N, D, eps,
    KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, channels = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)[None, :]
    at, real = rows.to(tl.int64)[:, None] * D + channels, channels < D
    inside = (rows < N)[:, None] & real
    added = _dropped(widen(tl.load(branch + at, mask=inside, other=0.0)), seed, rows, KEEP, BLOCK_M, BLOCK_D)
    sums = narrow(widen(tl.load(x + at, mask=inside, other=0.0)) + added, total.dtype.element_ty)
    tl.store(total + at, sums, mask=inside)
    sums = widen(sums)
    means = tl.sum(sums, 1) / D
    centred = tl.where(inside, sums - means[:, None], 0.0)
    scales = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    gain = widen(tl.load(weight + channels, mask=real, other=0.0))
    offset = widen(tl.load(bias + channels, mask=real, other=0.0))
    tl.store(normed + at, narrow(centred * scales[:, None] * gain + offset, normed.dtype.element_ty), mask=inside)
    tl.store(statistics + rows, means, mask=rows < N)
    tl.store(statistics + N + rows, scales, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def _add_layer_norm_bwd_kernel(
    grad_total, grad_normed, total, statistics, weight, seed, grad_x, grad_branch, parts, N, D,
    SAME: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    channels = tl.arange(0, BLOCK_D)[None, :]
    real = channels < D
    gain = widen(tl.load(weight + channels, mask=real, other=0.0))
    of_weight = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    of_bias = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, CHUNK, BLOCK_M):
        rows = tl.program_id(0) * CHUNK + start + tl.arange(0, BLOCK_M)
        at, inside = rows.to(tl.int64)[:, None] * D + channels, (rows < N)[:, None] & real
        slope = widen(tl.load(grad_normed + at, mask=inside, other=0.0))
        sums = widen(tl.load(total + at, mask=inside, other=0.0))
        means = tl.load(statistics + rows, mask=rows < N, other=0.0)
        scales = tl.load(statistics + N + rows, mask=rows < N, other=0.0)
        unit = tl.where(inside, (sums - means[:, None]) * scales[:, None], 0.0)
        scaled = slope * gain
        through = scaled - (tl.sum(scaled, 1) / D)[:, None] - unit * (tl.sum(scaled * unit, 1) / D)[:, None]
        grad = through * scales[:, None] + widen(tl.load(grad_total + at, mask=inside, other=0.0))
        tl.store(grad_x + at, narrow(grad, grad_x.dtype.element_ty), mask=inside)
        if not SAME:
            kept = _dropped(grad, seed, rows, KEEP, BLOCK_M, BLOCK_D)
            tl.store(grad_branch + at, narrow(kept, grad_branch.dtype.element_ty), mask=inside)
        of_weight += slope * unit
        of_bias += slope
    parts += tl.program_id(0).to(tl.int64) * D + tl.arange(0, BLOCK_D)
    tl.store(parts, tl.sum(of_weight, 0), mask=tl.arange(0, BLOCK_D) < D)
    tl.store(parts + tl.num_programs(0).to(tl.int64) * D, tl.sum(of_bias, 0), mask=tl.arange(0, BLOCK_D) < D)


@triton.jit
def _dropped(values, seed, rows, KEEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """``values`` where the mask of these rows keeps them, over the share that it keeps; 0 elsewhere."""
    if KEEP == 256:
        return values
    else:
        survives = keep_tile(seed, tl.full((), 0, tl.int32), rows, 0, KEEP, BLOCK_M, BLOCK_D)
        return tl.where(survives, values * (256 / KEEP), 0.0)


def add_layer_norm_fwd(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    keep: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` and ``branch (N, D)`` -> sum, normalized sum, and mean and reciprocal deviation of its rows ``(2, N)``."""
    rows, channels = x.shape
    total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype), device=x.device)
    normed = torch.empty(x.shape, dtype=dtype, device=x.device)
    statistics = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    tile = _tile(channels)
    if rows:
        tensors = (x.contiguous(), branch.contiguous(), weight.contiguous(), bias.contiguous())
        with on_device(x):
            launch(_add_layer_norm_fwd_kernel, (cdiv(rows, tile["BLOCK_M"]),))(
                *tensors, seed, total, normed, statistics, rows, channels, eps,
                KEEP=keep, **tile, enable_fp_fusion=True,
            )  # fmt: skip
    return total, normed, statistics


def add_layer_norm_bwd(
    grad_total: Tensor,
    grad_normed: Tensor,
    total: Tensor,
    statistics: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    keep: int,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, of ``branch``, empty where it would be that of ``x``, and of weight and bias ``(2, D)``."""
    rows, channels = total.shape
    same = keep == 256 and x_dtype == branch_dtype
    grad_x = torch.empty(total.shape, dtype=x_dtype, device=total.device)
    grad_branch = torch.empty(0 if same else total.shape, dtype=branch_dtype, device=total.device)
    chunks = cdiv(rows, CHUNK)
    parts = torch.empty(2, chunks, channels, dtype=torch.float32, device=total.device)
    if rows:
        grads = (grad_total.contiguous(), grad_normed.contiguous())
        with on_device(total):
            launch(_add_layer_norm_bwd_kernel, (chunks,))(
                *grads, total, statistics, weight.contiguous(), seed, grad_x, grad_branch, parts, rows, channels,
                SAME=same, KEEP=keep, CHUNK=CHUNK, **_tile(channels), enable_fp_fusion=True,
            )  # fmt: skip
    return grad_x, grad_branch, parts.sum(1)


def _tile(channels: int) -> dict[str, int]:
    """Rows and channels of a tile, and its warps."""
    block = max(64, next_power_of_2(channels))  # 64 columns share a counter of dropout's random bits
    rows = min(CHUNK, max(1, TILE // block))
    return {"BLOCK_M": rows, "BLOCK_D": block, "num_warps": min(16, max(4, rows * block // 256))}
