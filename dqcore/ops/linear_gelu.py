"""``linear_gelu``: a linear layer with exact GELU, with as few launches and passes on a GPU as its rows allow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops.autocast import autocasting
from dqcore.ops.bias_gelu import bias_gelu
from dqcore.ops.checks import FLOATS, check_same_device, check_tensor
from dqcore.ops.reference.linear_gelu import linear_gelu_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["linear_gelu"]

HALF = (torch.float16, torch.bfloat16)
#: Rows up to which reading the weight is what takes the time; beyond, a library's product is the better one.
MOST_ROWS = 256


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x weight^T + bias)`` with the exact GELU, ``v / 2 (1 + erf(v / sqrt(2)))``.

    Args:
        x: ``(..., K)``, two dimensions or more; float16, bfloat16, float32 or float64.
        weight: ``(N, K)``, same dtype, except under autocast, which multiplies in its own.
        bias: ``(N,)``, as ``weight``.

    Returns:
        ``(..., N)`` in the dtype of the product.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit.

    Gradient: to all three, once on a GPU. Determinism: the same bits in every run.
    Cost: on a GPU one launch for up to 256 rows in half precision that need no gradient, which reads the weight once
    for each 64 of them; where a gradient is asked for, a product and :func:`dqcore.ops.bias_gelu`; else, and on a CPU,
    PyTorch's own two layers.
    """
    check_tensor("x", x)
    mixed = autocasting(x.device.type)
    check_tensor("weight", weight, dim=2, dtypes=FLOATS if mixed else (x.dtype,))
    check_tensor("bias", bias, dim=1, dtypes=FLOATS if mixed else (x.dtype,))
    check_same_device(x=x, weight=weight, bias=bias)
    if x.dim() < 2 or x.shape[-1] != weight.shape[1] or len(bias) != len(weight):
        shapes = ", ".join(str(tuple(value.shape)) for value in (x, weight, bias))
        raise InputError(f"x, weight, bias: expected shapes (..., K), (N, K) and (N,), got {shapes}")
    if backends.route(x.device) == "cpu":
        return F.gelu(F.linear(x, weight, bias))
    if torch.is_grad_enabled() and any(value.requires_grad for value in (x, weight, bias)):
        return bias_gelu(F.linear(x, weight), bias)
    if mixed or x.dtype not in HALF or x.numel() > MOST_ROWS * x.shape[-1]:
        return F.gelu(F.linear(x, weight, bias))
    out: Tensor = torch.ops.dqcore.linear_gelu(x.flatten(0, -2), weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from dqcore.kernels.linear_gelu import linear_gelu_fwd

    return linear_gelu_fwd(x, weight, bias)


register("linear_gelu", linear_gelu_reference, fake=_fake, gpu=Implementation(_triton, "triton"))
