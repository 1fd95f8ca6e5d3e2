"""The feature maps that a quantizer takes: where their channels lie, and one map from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MAP", "Layout", "layout_of", "memory_format_of", "pyramid"]


class Layout(NamedTuple):
    """How one input tensor lies: ``(B, dim, *grid)``, or with its channels last ``(B, *grid, dim)``.

    A grid of any number of dimensions is computed as rows and columns: no dimension as one cell, a sequence as one row,
    and of more than two dimensions all but the last are the rows.

    Attributes:
        dim: The number of dimensions of the tensor.
        channel: The dimension that holds the channels.
    """

    dim: int
    channel: int

    @property
    def shape(self) -> str:
        """The shape, as an error message names it."""
        grid = {2: [], 3: ["N"], 4: ["H", "W"], 5: ["T", "H", "W"]}.get(self.dim, ["..."])
        return f"({', '.join(['B', 'dim', *grid] if self.channel == 1 else ['B', *grid, 'dim'])})"

    def to_map(self, x: Tensor) -> Tensor:
        """The input as a feature map ``(B, dim, H, W)``; a view where its strides allow one."""
        return self.to_grid(x if self.channel == 1 else x.movedim(-1, 1))

    def to_grid(self, x: Tensor) -> Tensor:
        """A tensor ``(.., *grid)`` as ``(.., H, W)``."""
        if self.dim == 4:
            return x
        if self.dim < 4:
            return x[..., None, None] if self.dim == 2 else x.unsqueeze(-2)
        return x.flatten(2 - self.dim, -2)

    def restore(self, x: Tensor, rows: Sequence[int] = ()) -> Tensor:
        """A map ``(B, dim, H, W)`` or a code map ``(B, H, W)`` in the layout of the input, a view.

        Args:
            x: The map.
            rows: The sizes of all dimensions of the grid but the last; needed where there are more than two.
        """
        is_map = x.dim() == 4
        if self.dim < 4:
            x = x[..., 0, 0] if self.dim == 2 else x.squeeze(-2)
        elif self.dim > 4:
            x = x.unflatten(-2, tuple(rows))
        return x.movedim(1, -1) if is_map and self.channel != 1 else x


def layout_of(num_dimensions: int, channel_last: bool) -> Layout:
    """The layout of an input with so many dimensions, 2 at least."""
    return Layout(num_dimensions, num_dimensions - 1 if channel_last else 1)


MAP = layout_of(4, channel_last=False)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """``channels_last`` for a map ``(B, D, H, W)`` that has no other format, else ``contiguous_format``."""
    if torch._C._are_functorch_transforms_active():  # vmap cannot tell
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def pyramid(x: Tensor, num_granularities: int) -> list[Tensor]:
    """Feature maps coarse to fine from the finest one: each is the mean of 2 x 2 cells of the next."""
    maps = [x]
    for _ in range(num_granularities - 1):
        maps.insert(0, F.avg_pool2d(maps[0], 2))
    return maps
