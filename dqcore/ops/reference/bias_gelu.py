"""The specification of ``bias_gelu`` and of its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bias_gelu_backward_reference", "bias_gelu_reference"]


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)``, computed in float32 or wider, in ``x``'s dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.gelu(x.to(wide) + bias.to(wide)).to(x.dtype)


def bias_gelu_backward_reference(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x``, and of ``bias`` in float32 or wider: the slope of ``v P(v)`` is ``P(v) + v p(v)``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    value = x.to(wide) + bias.to(wide)
    density = torch.exp(-0.5 * value.square()) / math.sqrt(2 * math.pi)
    slope = grad.to(wide) * (0.5 * (1 + torch.erf(value / math.sqrt(2))) + value * density)
    return slope.to(x.dtype), slope.sum(0)
