"""The feature maps that a quantizer takes: where their channels lie, one map from another, vectors drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.ops.layout import cells_per_code, merge_maps

__all__ = ["Layout", "draw_vectors", "layout_of", "pyramid"]


class Layout(NamedTuple):
    """Where the channels of one input tensor lie.

    Attributes:
        shape: As an error message names it.
        dim: The number of dimensions.
        channel: The dimension that holds the channels.
    """

    shape: str
    dim: int
    channel: int

    def to_map(self, x: Tensor) -> Tensor:
        """The input as a feature map ``(B, dim, H, W)``, a view; a sequence becomes one line."""
        return x if self.channel == 1 else (x[:, None] if self.dim == 3 else x).permute(0, 3, 1, 2)

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """The mask ``(B, h, w)`` of that map."""
        return mask[:, None] if mask is not None and self.dim == 3 and mask.dim() == 2 else mask

    def restore(self, x: Tensor) -> Tensor:
        """A map ``(B, dim, H, W)`` or a code map ``(B, H, W)`` in the layout of the input."""
        if self.channel == 1:
            return x
        x = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        return x[:, 0] if self.dim == 3 else x


MAP = Layout("(B, dim, H, W)", 4, 1)
CHANNEL_LAST = Layout("(B, H, W, dim)", 4, 3)
SEQUENCE = Layout("(B, N, dim)", 3, 2)


def layout_of(num_dimensions: int, channel_last: bool) -> Layout:
    """The layout that an input with so many dimensions should have."""
    if not channel_last:
        return MAP
    return SEQUENCE if num_dimensions == 3 else CHANNEL_LAST


def pyramid(x: Tensor, num_granularities: int) -> list[Tensor]:
    """Feature maps coarse to fine from the finest one: each is the mean of 2 x 2 cells of the next."""
    maps = [x]
    for _ in range(num_granularities - 1):
        maps.insert(0, F.avg_pool2d(maps[0], 2))
    return maps


def draw_vectors(maps: Sequence[Tensor], grain: Tensor, number: int) -> Tensor:
    """Vectors ``(number, D)`` drawn at random, with replacement, from those that the grain map selects."""
    cells = cells_per_code(grain, len(maps)).flatten()
    weight = torch.where(cells > 0, 1 / cells.clamp_min(1), 0.0).cumsum(0, dtype=torch.float64)
    draw = torch.rand(number, device=grain.device, dtype=torch.float64) * weight[-1]
    cell = torch.searchsorted(weight, draw, right=True).clamp_max(len(weight) - 1)
    merged = merge_maps(maps, grain) if len(maps) > 1 else maps[0]
    image, inside = cell // merged[0, 0].numel(), cell % merged[0, 0].numel()
    return merged[image, :, inside // merged.shape[3], inside % merged.shape[3]]
