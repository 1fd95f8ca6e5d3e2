"""The specification of ``linear_gelu``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.ops.reference.bias_gelu import gelu

__all__ = ["linear_gelu_reference"]


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x weight^T + bias)``, computed in float32 or wider, in ``x``'s dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return gelu(F.linear(x.to(wide), weight.to(wide), bias.to(wide))).to(x.dtype)
