"""How a gradient passes the choice of the nearest code, and how vectors are compared with codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.ops import Lookup
from dqcore.ops.layout import merge_maps
from dqcore.ops.registry import is_traced

__all__ = ["Cosine", "Euclidean", "Rotation", "StraightThrough"]

_LEAST = 2.0**-149  # the least number above 0 in float32


@dataclass(frozen=True)
class StraightThrough:
    """``z + sg(e - z)``, where sg stops gradients: the encoder's vector z gets the gradient of the code's vector e."""

    def __call__(self, maps: Sequence[Tensor], grain: Tensor, lookup: Lookup) -> Tensor:
        """The quantized map of the lookup, which has this gradient already."""
        return lookup.quantized


@dataclass(frozen=True)
class Rotation:
    """``sg(||e|| / ||z|| R) z``, where R rotates z to e: the gradient is rotated too (Fifty et al., 2024).

    A vector of zeros, or so short that the quotient leaves float32, is not turned: its gradient goes straight through.
    """

    def __call__(self, maps: Sequence[Tensor], grain: Tensor, lookup: Lookup) -> Tensor:
        """The quantized map with the rotated gradient. It merges the maps, which costs a few passes over them."""
        dtype = torch.promote_types(lookup.quantized.dtype, torch.float32)
        z, e = merge_maps(maps, grain).to(dtype), lookup.quantized.detach().to(dtype)
        norm_z, norm_e = _length(z.detach(), 1), _length(e, 1)
        u, q = z.detach() / norm_z, e / norm_e
        middle, scale = F.normalize(u + q, dim=1), norm_e / norm_z
        known = scale.isfinite() & (norm_z > _LEAST)
        y = z * torch.where(known, scale, 1)
        turned = y - 2 * middle * (middle * y).sum(1, keepdim=True) + 2 * q * (u * y).sum(1, keepdim=True)
        rotated = torch.where(known, turned, z)
        return (e + (rotated - rotated.detach())).to(lookup.quantized.dtype)  # the bracket is 0: the value is e


@dataclass(frozen=True)
class Euclidean:
    """Compare vectors and codes as they are."""

    def __call__(self, vectors: Tensor, dim: int) -> Tensor:
        """The vectors along ``dim``, unchanged."""
        return vectors


@dataclass(frozen=True)
class Cosine:
    """Compare directions: vectors and codes are scaled to length 1, in float32 at least, before the lookup.

    A vector of zeros has no direction: it stays as it is, and so does its gradient.
    """

    def __call__(self, vectors: Tensor, dim: int) -> Tensor:
        """The vectors along ``dim``, each of length 1."""
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        length = _length(vectors, dim)
        return vectors / length.masked_fill(length <= _LEAST, 1)


def _length(vectors: Tensor, dim: int) -> Tensor:
    """Lengths along ``dim``, which stays; the least number for 0.

    Where the host may ask, they are right in all of float32's range: squares leave it beyond 1e18 and below 1e-18.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    if vectors.device.type == "cpu" and not is_traced():
        small = length < 1e-18
        if bool((length > 1e18).any()) or (bool(small.any()) and bool((vectors.where(small, 0) != 0).any())):
            length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True, dtype=torch.float64)
    return length.clamp(_LEAST, torch.finfo(vectors.dtype).max).to(vectors.dtype)
