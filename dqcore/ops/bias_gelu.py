"""``bias_gelu``: what follows the first product of a transformer's MLP, in one pass each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.reference.bias_gelu import bias_gelu_backward_reference, bias_gelu_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["bias_gelu"]


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)`` with the exact GELU, ``v / 2 (1 + erf(v / sqrt(2)))``.

    Args:
        x: ``(..., D)``, two dimensions or more; float16, bfloat16, float32 or float64.
        bias: ``(D,)``; may have another dtype, as under autocast.

    Returns:
        ``x``'s shape and dtype; computed in float32 or wider, on a CPU from the sum as ``x``'s dtype rounds it.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit.

    Gradient: to ``x`` and ``bias``, once.
    Determinism: the same bits in every run and on every GPU.
    Cost: forward reads and writes once; backward reads ``x`` and the gradient and writes one gradient, and adds up that
    of the bias on the way.
    """
    check_tensor("x", x)
    check_tensor("bias", bias, dim=1)
    check_same_device(x=x, bias=bias)
    if x.dim() < 2 or x.shape[-1] != len(bias) or not len(bias):
        raise InputError(f"bias: expected one number a channel of x, got {tuple(bias.shape)} for {tuple(x.shape)}")
    if backends.route(x.device) == "cpu":
        return F.gelu((x + bias).to(x.dtype))
    out: Tensor = torch.ops.dqcore.bias_gelu(x.flatten(0, -2), bias)
    return out.view(x.shape)


def _fake(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(len(bias), dtype=torch.promote_types(x.dtype, torch.float32))


def _triton(x: Tensor, bias: Tensor) -> Tensor:
    from dqcore.kernels.bias_gelu import bias_gelu_fwd

    return bias_gelu_fwd(x, bias)


def _triton_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from dqcore.kernels.bias_gelu import bias_gelu_bwd

    return bias_gelu_bwd(grad, x, bias)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    of_x, of_bias = torch.ops.dqcore.bias_gelu_backward(grad, x, bias)
    return of_x, of_bias.to(bias.dtype)


register(
    "bias_gelu",
    bias_gelu_reference,
    fake=_fake,
    gpu=Implementation(_triton, "triton"),
).register_autograd(_backward, setup_context=_setup_context)

register(
    "bias_gelu_backward",
    bias_gelu_backward_reference,
    fake=_fake_backward,
    gpu=Implementation(_triton_backward, "triton"),
)
