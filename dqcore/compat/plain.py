"""When the quantizers of this room compute with PyTorch's own operations alone.

Transforms of functorch (``torch.func``, ``torch.vmap``) do not know our ops. And a program that ``torch.export``, ONNX
or ``torch.jit.trace`` writes must run without dqcore and at other sizes, as it does with the original classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.backends import exporting
from dqcore.ops.reference.nearest_code import nearest_code_reference

__all__ = ["plain_is_wanted", "plain_lookup", "plain_nearest"]


def plain_is_wanted() -> bool:
    """Whether a transform of functorch runs, or a program is exported."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return torch._C._are_functorch_transforms_active() or exporting() or traced


def plain_nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """The exact nearest codes ``(N,)`` of ``x (N, D)``."""
    return nearest_code_reference(x.detach(), codebook.detach(), "exact")


def plain_lookup(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``lookup`` returns: the quantized ``z (N, D)`` or ``(B, D, H, W)``, commitment, codebook loss, codes."""
    rows = z if z.dim() == 2 else z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    codes = plain_nearest(rows, codebook).clamp_min(0)
    vectors = F.embedding(codes, codebook)
    commitment = (vectors.detach() - rows).square().mean()
    difference = (vectors - rows).detach()
    if z.dim() == 4:
        difference = difference.reshape(z.shape[0], z.shape[2], z.shape[3], z.shape[1]).permute(0, 3, 1, 2)
    return z + difference, commitment, (vectors - rows.detach()).square().mean(), codes
