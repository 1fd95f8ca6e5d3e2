"""``linear_gelu``: a linear layer with exact GELU, for the few rows of a sampling step one launch on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.reference.linear_gelu import linear_gelu_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["linear_gelu", "linear_gelu_reference"]

HALF = (torch.float16, torch.bfloat16)
#: Rows up to which reading the weight is what takes the time; beyond, a library's product is the better one.
MOST_ROWS = 256


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x weight^T + bias)`` with the exact GELU, ``v / 2 (1 + erf(v / sqrt(2)))``.

    Args:
        x: ``(..., K)``, two dimensions or more; float16, bfloat16, float32 or float64.
        weight: ``(N, K)``, same dtype.
        bias: ``(N,)``, same dtype.

    Returns:
        ``(..., N)`` in ``x``'s dtype; sums and GELU are float32 for half precision.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit.

    Gradient: that of PyTorch's own layers, which compute this wherever a gradient is asked for, on a CPU, in autocast,
    for more than 256 rows, and for float32 and float64.
    Cost: elsewhere one launch that reads the weight once for each 64 rows.
    """
    check_tensor("x", x)
    check_tensor("weight", weight, dim=2, dtypes=(x.dtype,))
    check_tensor("bias", bias, dim=1, dtypes=(x.dtype,))
    check_same_device(x=x, weight=weight, bias=bias)
    if x.dim() < 2 or x.shape[-1] != weight.shape[1] or len(bias) != len(weight):
        shapes = ", ".join(str(tuple(value.shape)) for value in (x, weight, bias))
        raise InputError(f"x, weight, bias: expected shapes (..., K), (N, K) and (N,), got {shapes}")
    if not _fused(x, weight, bias):
        return F.gelu(F.linear(x, weight, bias))
    out: Tensor = torch.ops.dqcore.linear_gelu(x.flatten(0, -2), weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def _fused(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel is meant for this."""
    if x.dtype not in HALF or backends.route(x.device) == "cpu" or x.numel() > MOST_ROWS * x.shape[-1]:
        return False
    learns = torch.is_grad_enabled() and any(value.requires_grad for value in (x, weight, bias))
    return not learns and not torch.is_autocast_enabled(x.device.type)


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from dqcore.kernels.linear_gelu import linear_gelu_fwd

    return linear_gelu_fwd(x, weight, bias)


register("linear_gelu", linear_gelu_reference, fake=_fake, gpu=Implementation(_triton, "triton"))
