"""The specification of ``bias_gelu`` and of its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["bias_gelu_backward_reference", "bias_gelu_reference", "gelu"]


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)``, computed in float32 or wider, in ``x``'s dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return gelu(x.to(wide) + bias.to(wide)).to(x.dtype)


def gelu(value: Tensor) -> Tensor:
    """``v P(v)``, with the normal distribution ``P``; accurate in its tails, where PyTorch's is not on every CPU."""
    return value * _share_below(value)


def _share_below(value: Tensor) -> Tensor:
    return 0.5 * torch.erfc(value / -math.sqrt(2))


def bias_gelu_backward_reference(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x``, and of ``bias`` in float32 or wider: the slope of ``v P(v)`` is ``P(v) + v p(v)``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    value = x.to(wide) + bias.to(wide)
    density = torch.exp(-0.5 * value.square()) / math.sqrt(2 * math.pi)
    slope = grad.to(wide) * (_share_below(value) + value * density)
    return slope.to(x.dtype), slope.sum(0)
