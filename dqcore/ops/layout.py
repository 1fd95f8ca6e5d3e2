"""Where each code of a batch lies, in plain PyTorch: what ``dynamic_lookup`` and the four pack and unpack ops share.

Region ``(i, j)`` of granularity ``g`` holds ``2**g x 2**g`` codes, and each of them fills a block of
``2**(G - 1 - g)`` cells squared on the finest grid. :class:`dqcore.CodeSequence` says in which order they are packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.codes import Order, check_order
from dqcore.errors import InputError
from dqcore.ops.checks import check_cells, check_grain

__all__ = [
    "Places",
    "block_sum",
    "blocks",
    "cells_per_code",
    "check_layout",
    "check_total",
    "count_codes",
    "memory_format",
    "merge_maps",
    "places",
]


class Places(NamedTuple):
    """Where each code of a batch lies, ``(T,)`` int64 each: image, granularity, and cell of that granularity's grid."""

    image: Tensor
    grain: Tensor
    y: Tensor
    x: Tensor

    def of(self, grain: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index in the packed batch, image, y and x of the codes of one granularity."""
        index = (self.grain == grain).nonzero()[:, 0]
        return index, self.image[index], self.y[index], self.x[index]


def places(grain: Tensor, order: str, num_granularities: int) -> Places:
    """The codes that a grain map ``(B, h, w)`` asks for, in the order of their sequence."""
    found = []
    for g in range(num_granularities):
        side = 2**g
        cells = (grain == g)[:, :, None, :, None].expand(-1, -1, side, -1, side)  # (B, h, side, w, side)
        if order == "row-first":
            image, i, y, j, x = cells.nonzero(as_tuple=True)
        else:
            image, i, j, y, x = cells.transpose(2, 3).nonzero(as_tuple=True)
        found.append(torch.stack([image, torch.full_like(image, g), i * side + y, j * side + x]))
    codes = torch.cat(found, dim=1)
    return Places(*codes[:, codes[0].argsort(stable=True)])


def blocks(cells: Tensor, grain: int, num_granularities: int) -> Tensor:
    """A view of ``(.., H, W)`` cells as ``(.., y, side, x, side)``: the blocks that codes of one granularity fill."""
    side = 2 ** (num_granularities - 1 - grain)
    height, width = cells.shape[-2:]
    return cells.unflatten(-1, (width // side, side)).unflatten(-3, (height // side, side))


def memory_format(features: Tensor) -> torch.memory_format:
    """Channels-last if channels lie side by side in memory and cells do not."""
    last = features.stride(1) == 1 and features.shape[1] > 1 and not features.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def merge_maps(maps: Sequence[Tensor], grain: Tensor) -> Tensor:
    """One map ``(B, D, H, W)`` on the finest grid, each region taken from the map of its granularity.

    A region whose granularity is out of range, as -1, becomes 0.
    """
    finest = 2 ** (len(maps) - 1)
    region = grain.repeat_interleave(finest, 1).repeat_interleave(finest, 2)[:, None]
    merged = torch.zeros_like(maps[-1])
    for g, values in enumerate(maps):
        repeat = 2 ** (len(maps) - 1 - g)
        merged = torch.where(region == g, values.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3), merged)
    return merged


def cells_per_code(grain: Tensor, num_granularities: int) -> Tensor:
    """How many cells of the finest grid the code at each cell fills, ``(B, H, W)`` int64; 0 where there is no code."""
    cells = torch.where(grain < 0, 0, 4 ** (num_granularities - 1 - grain).clamp(0, num_granularities))
    finest = 2 ** (num_granularities - 1)
    return cells.repeat_interleave(finest, 1).repeat_interleave(finest, 2)


def block_sum(x: Tensor, size: int) -> Tensor:
    """Sums of the ``size x size`` blocks of the last two dimensions, in a fixed order; ``size`` is a power of two."""
    while size > 1:
        x = x[..., ::2] + x[..., 1::2]
        x = x[..., ::2, :] + x[..., 1::2, :]
        size //= 2
    return x


def count_codes(grain: Tensor) -> int:
    """The number of codes of a whole batch, ``sum 4**g``. On a GPU the host waits for it."""
    return int((1 << 2 * grain).sum())


def check_layout(grain: Tensor, order: Order, num_granularities: int | None, cells: tuple[str, Tensor] | None) -> int:
    """Raise unless these fit each other; return the number of granularities.

    Args:
        grain: Grain map ``(B, h, w)``.
        order: Order of the sequence.
        num_granularities: ``G``, or None to take it from the shapes.
        cells: Name and value of the tensor ``(B, .., H, W)`` on the finest grid, where there is one.
    """
    check_order(order)
    if num_granularities is not None and num_granularities < 1:
        raise InputError(f"num_granularities: expected at least 1, got {num_granularities}")
    check_grain(grain, num_granularities or 63)
    images, rows, columns = grain.shape
    if rows == 0 or columns == 0:
        raise InputError(f"grain: expected at least one region an image, got shape {tuple(grain.shape)}")
    if cells is not None:
        name, tensor = cells
        if num_granularities is None:
            num_granularities = 1
            while rows * 2 ** (num_granularities - 1) < tensor.shape[-2]:
                num_granularities += 1
            check_grain(grain, num_granularities)
        expected = (images, rows * 2 ** (num_granularities - 1), columns * 2 ** (num_granularities - 1))
        if (tensor.shape[0], *tensor.shape[-2:]) != expected:
            raise InputError(
                f"{name}: expected {expected[0]} images of {expected[1]} x {expected[2]} cells, as grain "
                f"{tuple(grain.shape)} with {num_granularities} granularities, got shape {tuple(tensor.shape)}"
            )
    assert num_granularities is not None
    check_cells(images * rows * columns, num_granularities)
    return num_granularities


def check_total(name: str, got: int, expected: int) -> None:
    """Raise unless a size is the number of codes that the grain map asks for."""
    if got != expected:
        raise InputError(f"{name}: expected {expected} codes, as grain asks for, got {got}")
