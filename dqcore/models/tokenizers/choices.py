"""The codes of images at every granularity, from one pass of the encoder: any grain map can then be had at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Choices"]


class Choices(NamedTuple):
    """What :meth:`dqcore.DQVAE.choices` returns.

    Attributes:
        codes: Code map for each granularity, coarse to fine, if all regions had it: int64, ``(G, B, H, W)``.
        scores: How much each region needs each refinement, ``(B, G - 1, h, w)``, see :mod:`dqcore.nn.allocation`.
        grain: The grain map that the router chose, int64, ``(B, h, w)``.
    """

    codes: Tensor
    scores: Tensor
    grain: Tensor

    def at(self, grain: Tensor) -> Tensor:
        """The code map ``(B, H, W)`` for a grain map ``(B, h, w)``: what ``encode`` gives where that is chosen."""
        scale = self.codes.shape[2] // grain.shape[1]
        cells = grain.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return self.codes.gather(0, cells[None])[0]

    def refinements(self) -> Tensor:
        """The regions in the order in which they are refined, int64, ``(B, (G - 1) * h * w)``.

        A region appears once for each granularity above the coarsest. The first n refinements of an image make a grain
        map, see :meth:`refined`.
        """
        number = self.scores[0, 0].numel()
        finite = self.scores.double().flatten(1).nan_to_num(nan=-1e300, posinf=1e300, neginf=-1e300)
        return finite.argsort(dim=1, descending=True, stable=True) % number

    def refined(self, regions: Tensor) -> Tensor:
        """The grain map ``(1, h, w)`` in which each of these regions, ``(n,)``, is as fine as it occurs often."""
        number = self.grain[0].numel()
        return torch.bincount(regions, minlength=number).view(1, *self.grain.shape[1:])
