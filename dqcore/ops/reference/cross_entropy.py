"""The specification of ``cross_entropy`` and of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_entropy_backward_reference", "cross_entropy_reference"]


def cross_entropy_reference(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``(N,)`` and logarithms of the sums of exponentials ``(N,)``, in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = wide.logsumexp(1)
    return lse - wide.gather(1, targets[:, None])[:, 0], lse


def cross_entropy_backward_reference(grad: Tensor, logits: Tensor, targets: Tensor, lse: Tensor) -> Tensor:
    """``grad (softmax(logits) - one-hot of the target)``, in the logits' dtype."""
    slope = (logits.to(lse.dtype) - lse[:, None]).exp()
    hot = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return ((slope - hot.to(slope.dtype)) * grad[:, None]).to(logits.dtype)
