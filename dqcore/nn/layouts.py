"""The feature maps that a quantizer takes: where their channels lie, one map from another, vectors drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.errors import InputError
from dqcore.ops.checks import check_tensor
from dqcore.ops.layout import cells_per_code, merge_maps

__all__ = ["MAP", "Arranged", "Layout", "arrange", "draw_vectors", "layout_of", "memory_format_of", "pyramid"]


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
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class Arranged(NamedTuple):
    """The input of a quantizer, checked, as feature maps.

    Attributes:
        maps: Coarse to fine, ``(B, dim, h * 2**g, w * 2**g)``.
        grain: ``(B, h, w)`` int64.
        mask: ``(B, h, w)`` bool, or None.
        layout: How the input lay.
        rows: The sizes of all dimensions of its grid but the last.
    """

    maps: list[Tensor]
    grain: Tensor
    mask: Tensor | None
    layout: Layout
    rows: tuple[int, ...]

    @property
    def selected(self) -> Tensor:
        """The grain map with -1 where the mask is False."""
        return self.grain if self.mask is None else torch.where(self.mask, self.grain, -1)

    def restore(self, quantized: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """A quantized map and a code map in the layout of the input, and the map in its memory format."""
        if memory_format_of(self.maps[-1]) is torch.channels_last:
            quantized = quantized.contiguous(memory_format=torch.channels_last)
        return self.layout.restore(quantized, self.rows), self.layout.restore(codes, self.rows)


def arrange(
    features: Tensor | Sequence[Tensor],
    grain: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    dim: int,
    num_granularities: int,
    channel_last: bool,
) -> Arranged:
    """Check the arguments of a quantizer, and bring them into one layout. See :class:`dqcore.DynamicQuantizer`."""
    layout, rows = MAP, torch.Size()
    if isinstance(features, Tensor):
        layout = layout_of(features.dim(), channel_last)
        known = features.dim() == 4 or (num_granularities == 1 and features.dim() >= 2)
        if not known or features.shape[layout.channel] != dim:
            layout = layout if known else layout_of(4, channel_last)
            raise InputError(f"features: expected {layout.shape} with dim={dim}, got {tuple(features.shape)}")
        rows = features.movedim(layout.channel, 1).shape[2:-1] if features.dim() > 4 else rows
        finest = layout.to_map(features)
        maps = pyramid(finest, num_granularities)
    else:
        maps = list(features)
        if len(maps) != num_granularities or maps[0].dim() != 4 or maps[0].shape[1] != dim:
            shapes = [tuple(values.shape) for values in maps]
            raise InputError(f"features: expected {num_granularities} maps (B, {dim}, ...), got {shapes}")
    if grain is not None:
        grain = layout.to_grid(grain) if grain.dim() == layout.dim - 1 else grain
    elif num_granularities == 1:
        grain = maps[-1].new_zeros((maps[-1].shape[0], *maps[-1].shape[2:]), dtype=torch.int64)
    else:
        raise InputError(f"grain: expected a grain map, as there are {num_granularities} granularities")
    if lengths is not None:
        mask = _with_lengths(mask, lengths, maps[-1], layout)
    elif mask is not None:
        mask = layout.to_grid(mask) if mask.dim() == layout.dim - 1 else mask
    if mask is not None:
        check_tensor("mask", mask, dim=3, dtypes=(torch.bool,))
        if mask.shape != grain.shape:
            raise InputError(f"mask: expected shape {tuple(grain.shape)}, as the grid, got {tuple(mask.shape)}")
    return Arranged(maps, grain, mask, layout, tuple(rows))


def _with_lengths(mask: Tensor | None, lengths: Tensor, line: Tensor, layout: Layout) -> Tensor:
    """The mask ``(B, 1, N)`` of the vectors within the lengths, and within a mask."""
    if layout.dim != 3:
        raise InputError(f"lengths: expected sequences, got features with {layout.dim} dimensions")
    if tuple(lengths.shape) != (line.shape[0],) or lengths.is_floating_point() or lengths.dtype is torch.bool:
        raise InputError(f"lengths: expected {line.shape[0]} integers, got {tuple(lengths.shape)} {lengths.dtype}")
    within = torch.arange(line.shape[3], device=line.device) < lengths.to(line.device)[:, None]
    return (within if mask is None else within & mask)[:, None]


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
