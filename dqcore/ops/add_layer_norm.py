"""``add_layer_norm``: a residual sum with dropout, and the layer normalization after it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops.autocast import autocasting
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.dropout_mask import check_seed, draw_seed, keep_of
from dqcore.ops.reference.add_layer_norm import add_layer_norm_backward_reference, add_layer_norm_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["add_layer_norm"]


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``total = x + dropout(branch)`` and ``layer_norm(total) * weight + bias``, over channels.

    Args:
        x: ``(..., D)``, two dimensions or more; float16, bfloat16, float32 or float64.
        branch: What is added, ``(..., D)``; may have another dtype, as under autocast.
        weight: ``(D,)``; may have another dtype, as float32 weights of a sum in half precision.
        bias: ``(D,)``, as ``weight``.
        eps: Added to the variance; 0 or more.
        dropout_p: Probability that a number of ``branch`` is dropped, rounded to n/256; the others are divided by the
            share kept.
        dropout_seed: ``(2,)`` int64 on the same device; the mask is that of :func:`dqcore.ops.dropout_mask` for one
            head, N rows, which are all dimensions but the last, and D columns. By default it is drawn anew: on a CPU
            by PyTorch's own dropout, which is the fast one there, and whose probability is not rounded.

    Returns:
        The sum ``(..., D)``, in the dtype that both promote to, and its normalization, in the dtype of autocast where
        that is on and else as the sum. Statistics are computed from the sum as it is returned, in float32.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes, devices, ``eps`` or probability do not fit.

    Gradient: to ``x``, ``branch``, ``weight`` and ``bias``, once.
    Determinism: the same bits in every run and on every GPU; rows do not depend on each other, except in gradients of
    ``weight`` and ``bias``.
    Cost: forward reads ``x`` and ``branch`` and writes both results; backward reads two gradients and the sum and
    writes two gradients. No mask is kept. Rows of more than 4096 channels take the reference.
    """
    _check(x, branch, weight, bias)
    if not 0 <= eps < math.inf:
        raise InputError(f"eps: expected a number from 0 up, got {eps}")
    keep, dtype = keep_of(dropout_p), _dtype(x, branch)
    if dropout_seed is not None:
        check_seed("dropout_seed", dropout_seed, x=x)
    elif backends.route(x.device) == "cpu":
        total = x + (F.dropout(branch, dropout_p) if dropout_p else branch)
        if not weight.dtype == bias.dtype == total.dtype:  # or else PyTorch wants float32 weights
            weight, bias = (value.to(torch.promote_types(total.dtype, torch.float32)) for value in (weight, bias))
        return total, F.layer_norm(total, weight.shape, weight, bias, eps).to(dtype)
    seed = draw_seed(x.device) if dropout_seed is None and keep < 256 else dropout_seed
    rows = (value.flatten(0, -2) for value in (x, branch))
    total, normed, _ = torch.ops.dqcore.add_layer_norm(*rows, weight, bias, seed, keep, eps, dtype)
    return total.view(x.shape), normed.view(x.shape)


def _check(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_tensor("x", x)
    check_tensor("branch", branch)
    check_tensor("weight", weight, dim=1)
    check_tensor("bias", bias, dim=1)
    check_same_device(x=x, branch=branch, weight=weight, bias=bias)
    if x.dim() < 2 or x.shape[-1] < 1:
        raise InputError(f"x: expected two dimensions or more, and at least one channel, got shape {tuple(x.shape)}")
    if branch.shape != x.shape:
        raise InputError(f"branch: expected x's shape {tuple(x.shape)}, got {tuple(branch.shape)}")
    for name, values in (("weight", weight), ("bias", bias)):
        if len(values) != x.shape[-1]:
            raise InputError(f"{name}: expected shape ({x.shape[-1]},), got {tuple(values.shape)}")


def _dtype(x: Tensor, branch: Tensor) -> torch.dtype:
    """Of the normalized sum: what the product after it computes in."""
    kind = x.device.type
    if autocasting(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(x.dtype, branch.dtype)


Three = tuple[Tensor, Tensor, Tensor]


def _fake(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    keep: int,
    eps: float,
    dtype: torch.dtype,
) -> Three:
    stored = torch.promote_types(x.dtype, branch.dtype)
    wide = torch.promote_types(stored, torch.float32)
    statistics = x.new_empty(2, len(x), dtype=wide)
    return x.new_empty(x.shape, dtype=stored), x.new_empty(x.shape, dtype=dtype), statistics


def _fake_backward(
    grad_total: Tensor, grad_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor,
    seed: Tensor | None, keep: int, x_dtype: torch.dtype, branch_dtype: torch.dtype,
) -> Three:  # fmt: skip
    same = keep == 256 and x_dtype == branch_dtype
    of_branch = total.new_empty(0 if same else total.shape, dtype=branch_dtype)
    return total.new_empty(total.shape, dtype=x_dtype), of_branch, statistics.new_empty(2, total.shape[1])


def _triton(*args: Any) -> Three:
    from dqcore.kernels import add_layer_norm as kernels

    wide = args[0].shape[1] > kernels.MOST_CHANNELS
    return add_layer_norm_reference(*args) if wide else kernels.add_layer_norm_fwd(*args)


def _triton_backward(*args: Any) -> Three:
    from dqcore.kernels import add_layer_norm as kernels

    wide = args[2].shape[1] > kernels.MOST_CHANNELS
    return add_layer_norm_backward_reference(*args) if wide else kernels.add_layer_norm_bwd(*args)


def _setup_context(ctx: Any, inputs: tuple, output: Three) -> None:
    x, branch, weight, bias, seed, keep, _, _ = inputs
    total, _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)  # else a launch would fill zeros for that of the statistics
    ctx.save_for_backward(total, statistics, weight, seed)
    ctx.rest, ctx.kinds = (keep, x.dtype, branch.dtype), (weight.dtype, bias.dtype)


def _backward(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    total, *saved = ctx.saved_tensors  # once: activation checkpointing allows no second time
    grads = (total.new_zeros(total.shape) if grad is None else grad for grad in (grad_total, grad_normed))
    grad, of_branch, sums = torch.ops.dqcore.add_layer_norm_backward(*grads, total, *saved, *ctx.rest)
    of_weight, of_bias = (value.to(kind) for value, kind in zip(sums, ctx.kinds, strict=True))
    keep, *dtypes = ctx.rest
    if keep == 256 and dtypes[0] == dtypes[1]:
        of_branch = grad
    return grad, of_branch, of_weight, of_bias, None, None, None, None


register(
    "add_layer_norm",
    add_layer_norm_reference,
    fake=_fake,
    gpu=Implementation(_triton, "triton"),
).register_autograd(_backward, setup_context=_setup_context)

register(
    "add_layer_norm_backward",
    add_layer_norm_backward_reference,
    fake=_fake_backward,
    gpu=Implementation(_triton_backward, "triton"),
)
