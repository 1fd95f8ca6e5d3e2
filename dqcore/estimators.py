"""How a gradient passes the choice of the nearest code, and how vectors are compared with codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.ops import Lookup
from dqcore.ops.layout import merge_maps

__all__ = ["Cosine", "Euclidean", "Rotation", "StraightThrough"]


@dataclass(frozen=True)
class StraightThrough:
    """``z + sg(e - z)``, where sg stops gradients: the encoder's vector z gets the gradient of the code's vector e."""

    def __call__(self, maps: Sequence[Tensor], grain: Tensor, lookup: Lookup) -> Tensor:
        """The quantized map of the lookup, which has this gradient already."""
        return lookup.quantized


@dataclass(frozen=True)
class Rotation:
    """``sg(||e|| / ||z|| R) z``, where R rotates z to e: the gradient is rotated too (Fifty et al., 2024)."""

    def __call__(self, maps: Sequence[Tensor], grain: Tensor, lookup: Lookup) -> Tensor:
        """The quantized map with the rotated gradient. It merges the maps, which costs a few passes over them."""
        z, e = merge_maps(maps, grain).float(), lookup.quantized.detach().float()
        norm_z = torch.linalg.vector_norm(z.detach(), dim=1, keepdim=True).clamp_min(1e-12)
        norm_e = torch.linalg.vector_norm(e, dim=1, keepdim=True)
        u, q = z.detach() / norm_z, e / norm_e.clamp_min(1e-12)
        middle = F.normalize(u + q, dim=1)
        turned = z - 2 * middle * (middle * z).sum(1, keepdim=True) + 2 * q * (u * z).sum(1, keepdim=True)
        rotated = turned * (norm_e / norm_z)
        return (e + (rotated - rotated.detach())).to(lookup.quantized.dtype)  # the bracket is 0: the value is e


@dataclass(frozen=True)
class Euclidean:
    """Compare vectors and codes as they are."""

    def __call__(self, vectors: Tensor, dim: int) -> Tensor:
        """The vectors along ``dim``, unchanged."""
        return vectors


@dataclass(frozen=True)
class Cosine:
    """Compare directions: vectors and codes are scaled to length 1, in float32, before the lookup."""

    def __call__(self, vectors: Tensor, dim: int) -> Tensor:
        """The vectors along ``dim``, each of length 1."""
        return F.normalize(vectors.float(), dim=dim)
