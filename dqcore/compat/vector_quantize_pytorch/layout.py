"""Sequences, feature maps and single vectors as one shape ``(B, N, dim)``, and the heads inside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqcore.compat.lookup import check_floats
from dqcore.errors import InputError

__all__ = ["InputLayout", "layout_of", "mask_of", "merge_heads", "rows_mask", "split_heads"]


class InputLayout(NamedTuple):
    """How an input holds its vectors."""

    grid: tuple[int, ...] | None  # extents between batch and channels; None for one vector a sample
    channel_first: bool

    def sequence(self, x: Tensor) -> Tensor:
        """The input as ``(B, N, dim)``."""
        if self.grid is None:
            return x.unsqueeze(1)
        last = x.movedim(1, -1) if self.channel_first else x
        return last if len(self.grid) == 1 else last.flatten(1, -2)

    def spread(self, values: Tensor) -> Tensor:
        """``(B, N, ...)`` back on the grid of the input."""
        if self.grid is None:
            return values.squeeze(1)
        return values if len(self.grid) == 1 else values.unflatten(1, self.grid)

    def vectors(self, values: Tensor) -> Tensor:
        """``(B, N, ..., dim)`` back in the input's layout."""
        values = self.spread(values)
        return values.movedim(-1, 1) if self.channel_first else values


def layout_of(layer: Any, x: Tensor) -> InputLayout:
    """The layout of an input of ``layer``.

    Raises:
        InputError: dimensions, channels or numbers that the layer does not take.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"x: expected a tensor, got {type(x).__name__}")
    check_floats("x", x)
    dims = x.dim()
    fmap = 4 if layer.accept_image_fmap else 5 if layer.accept_3d_fmap else None
    first = fmap is not None or not layer.channel_last
    if fmap is not None:
        expected = str(fmap)
        good = dims == fmap
    else:
        expected = "2 or 3" if first else "at least 2"
        good = dims in (2, 3) if first else dims >= 2
    if not good:
        raise InputError(f"x: expected {expected} dimensions, got shape {tuple(x.shape)}")
    axis = 1 if first and dims > 2 else dims - 1
    if x.shape[axis] != layer.dim:
        raise InputError(f"x: expected {layer.dim} channels in dimension {axis}, got shape {tuple(x.shape)}")
    if dims == 2:
        return InputLayout(None, False)
    return InputLayout(tuple(x.shape[2:] if first else x.shape[1:-1]), first)


def mask_of(layer: Any, layout: InputLayout, batch: int, mask: Tensor | None, lens: Tensor | None) -> Tensor | None:
    """The mask ``(B, N)`` that ``mask`` or ``lens`` ask for, of ``B = batch`` sequences."""
    if mask is None and lens is None:
        return None
    if mask is not None and lens is not None:
        raise InputError("lens: give lens or mask, not both")
    name = "lens" if mask is None else "mask"
    if layer.accept_image_fmap or layer.accept_3d_fmap or layout.grid is None or len(layout.grid) > 1:
        raise InputError(f"{name}: only sequences (B, N, dim) can be masked")
    given: Any = lens if mask is None else mask
    if not isinstance(given, Tensor):
        raise InputError(f"{name}: expected a tensor, got {type(given).__name__}")
    if mask is None:
        if given.shape != (batch,):
            raise InputError(f"lens: expected shape ({batch},), got {tuple(given.shape)}")
        return torch.arange(layout.grid[0], device=given.device) < given[:, None]
    if mask.dtype != torch.bool or mask.shape != (batch, *layout.grid):
        raise InputError(f"mask: expected bool ({batch}, {layout.grid[0]}), got {mask.dtype} {tuple(mask.shape)}")
    return mask


def split_heads(x: Tensor, heads: int, separate: bool) -> Tensor:
    """``(B, N, heads * d)`` as ``(C, B', N, d)``: a codebook for each head, or one that sees heads as samples."""
    if heads == 1:
        return x.unsqueeze(0)
    parts = x.unflatten(-1, (heads, -1))
    return parts.permute(2, 0, 1, 3) if separate else parts.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def merge_heads(values: Tensor, heads: int, separate: bool) -> Tensor:
    """``(C, B', N, ...)`` as ``(B, N, heads, ...)``, without the heads' dimension if there is one."""
    if heads == 1:
        return values.squeeze(0)
    return values.movedim(0, 2) if separate else values.squeeze(0).unflatten(0, (-1, heads)).movedim(1, 2)


def rows_mask(mask: Tensor, z: Tensor) -> Tensor:
    """The mask ``(B, N)`` of sequences for the vectors of ``z (C, B', N, d)`` in order, ``(B' * N,)``."""
    return mask.repeat_interleave(z.shape[1] // max(1, len(mask)), 0).flatten()
