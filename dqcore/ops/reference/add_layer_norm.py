"""The specification of ``add_layer_norm`` and of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.reference.dropout_mask import dropout_mask_reference

__all__ = ["add_layer_norm_backward_reference", "add_layer_norm_reference"]


def add_layer_norm_reference(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    keep: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum ``(N, D)``, the same normalized, and mean and reciprocal deviation of its rows ``(2, N)``."""
    stored = torch.promote_types(x.dtype, branch.dtype)
    wide = torch.promote_types(stored, torch.float32)
    total = (x.to(wide) + _dropped(branch.to(wide), seed, keep)).to(stored)
    mean = total.to(wide).mean(1)
    centred = total.to(wide) - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    normed = centred * rstd[:, None] * weight.to(wide) + bias.to(wide)
    return total, normed.to(dtype), torch.stack([mean, rstd])


def add_layer_norm_backward_reference(
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
    """Gradients of ``x``, ``branch``, and of ``weight`` and ``bias (2, D)``, these in float32 or wider.

    That of ``branch`` is empty where it is that of ``x``: without dropout, and in the same dtype.
    """
    wide, (mean, rstd) = statistics.dtype, statistics
    slope = grad_normed.to(wide)
    unit = (total.to(wide) - mean[:, None]) * rstd[:, None]
    scaled = slope * weight.to(wide)
    through = scaled - scaled.mean(1, keepdim=True) - unit * (scaled * unit).mean(1, keepdim=True)
    grad = through * rstd[:, None] + grad_total.to(wide)
    same = keep == 256 and x_dtype == branch_dtype
    of_branch = grad.new_empty(0) if same else _dropped(grad, seed, keep)
    return grad.to(x_dtype), of_branch.to(branch_dtype), torch.stack([(slope * unit).sum(0), slope.sum(0)])


def _dropped(values: Tensor, seed: Tensor | None, keep: int) -> Tensor:
    """``values (N, D)`` where the mask keeps them, over the share that it keeps; 0 elsewhere."""
    if seed is None or keep == 256:
        return values
    rows = torch.arange(len(values), device=values.device)
    survives = dropout_mask_reference(seed, 1, rows, values.shape[1], keep)[0]
    return torch.where(survives, values * (256 / keep), 0.0)
