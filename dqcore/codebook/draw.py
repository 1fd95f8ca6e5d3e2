"""Vectors drawn at random from what a quantizer looks up: to start a codebook and to revive unused codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.ops.layout import cells_per_code, merge_maps

__all__ = ["Drawn", "distinct", "draw_distinct"]


class Drawn(NamedTuple):
    """Vectors in random order. Shapes do not depend on values, so that a GPU needs no answer from the host.

    Attributes:
        vectors: ``(n, D)``.
        valid: ``(n,)`` bool; rows that are False are fillers, and come last.
        cell: ``(n,)`` int64, the cells of the finest grid that they lie at, counted through the batch.
    """

    vectors: Tensor
    valid: Tensor
    cell: Tensor

    def not_known(self, error: Tensor, grain: Tensor, num_granularities: int) -> Drawn:
        """The same without the vectors that a code has already, up to a thousandth of how far they lie apart.

        Args:
            error: ``(B, H, W)``, squared distances to the nearest codes, each divided by the cells that its code fills.
            grain: ``(B, h, w)``.
            num_granularities: G.
        """
        kept = torch.where(self.valid[:, None], self.vectors.float(), 0)
        number = self.valid.sum().clamp_min(1)
        away = torch.where(self.valid[:, None], kept - kept.sum(0) / number, 0)
        spread = away.square().sum() / number
        distance = (error * cells_per_code(grain, num_granularities)).flatten()[self.cell]
        return self._replace(valid=self.valid & (distance > 1e-6 * spread))


def draw_distinct(maps: Sequence[Tensor], grain: Tensor, number: int, hole: Tensor | None = None) -> Drawn:
    """Draw without replacement from the vectors that the grain map selects, each with the same chance.

    Args:
        maps: Feature maps coarse to fine, ``(B, D, h * 2**g, w * 2**g)``.
        grain: ``(B, h, w)``; a region whose granularity is -1 has no vectors.
        number: The most vectors to draw; fewer if the finest grid has fewer cells.
        hole: ``(B, H, W)`` bool; cells whose vectors are left out.
    """
    selected = _corners(grain, len(maps))
    if hole is not None:
        selected = selected & ~hole
    chance = torch.rand(selected.shape, device=grain.device).masked_fill(~selected, -1)
    order, cell = chance.flatten().topk(min(number, chance.numel()))
    merged = merge_maps(maps, grain) if len(maps) > 1 else maps[0]
    height, width = merged.shape[2:]
    size = max(1, height * width)
    image, inside = cell // size, cell % size
    return Drawn(merged.detach()[image, :, inside // max(1, width), inside % max(1, width)], order >= 0, cell)


def _corners(grain: Tensor, num_granularities: int) -> Tensor:
    """The upper left cell of each code's block on the finest grid, ``(B, H, W)`` bool."""
    if num_granularities == 1:
        return grain >= 0
    finest = 2 ** (num_granularities - 1)
    side = torch.where(grain < 0, 0, 1 << (num_granularities - 1 - grain).clamp_min(0))
    side = side.repeat_interleave(finest, 1).repeat_interleave(finest, 2)
    rows = torch.arange(side.shape[1], device=grain.device)[:, None]
    columns = torch.arange(side.shape[2], device=grain.device)
    return (side > 0) & ((rows | columns) & (side - 1) == 0)


def distinct(vectors: Tensor, valid: Tensor) -> Tensor:
    """Which of the valid rows of ``vectors (n, D)`` are the first with their values, ``(n,)`` bool.

    Rows are compared by a 64-bit hash: two different rows count as one with a chance of ``2**-64``.
    """
    bits = (vectors.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0: both zeros have the same bits
    place = torch.arange(bits.shape[1], device=bits.device) + 1
    mixed = bits + place * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    number = torch.arange(len(vectors), device=bits.device)
    key, order = torch.where(valid, (mixed ^ (mixed >> 31)).sum(1), number).sort(stable=True)
    again = torch.zeros_like(valid)
    again[1:] = key[1:] == key[:-1]
    return valid & ~torch.zeros_like(valid).scatter(0, order, again)
