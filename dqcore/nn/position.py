"""Biases that tell the decoder where in the image a latent cell lies; they are added to its input.

Both kinds work on grids of any size: coordinates always run from -1 to 1, and learned tables are stretched to the grid
by linear interpolation.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FourierPosition", "LearnedPosition", "Position", "position_biases"]

Position = Literal["none", "fourier", "learned", "fourier+learned"]


def position_biases(position: Position, size: int, channels: int) -> nn.ModuleDict:
    """The biases that ``position`` names, each called as ``bias(height, width)``.

    Args:
        position: Which biases.
        size: Height and width of the grid that learned tables are made for.
        channels: Channels of the latent map.
    """
    biases = nn.ModuleDict()
    if "fourier" in position:
        biases["fourier"] = FourierPosition(channels)
    if "learned" in position:
        biases["learned"] = LearnedPosition(size, channels)
    return biases


class FourierPosition(nn.Module):
    """``sin(W (x, y) + b)`` with learned ``weight (C, 2)`` and ``bias (C,)``, coordinates in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 2).uniform_(-(4.5**0.5), 4.5**0.5))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-(0.5**0.5), 0.5**0.5))

    def forward(self, height: int, width: int) -> Tensor:
        """The bias of a grid, ``(C, height, width)``."""
        x = torch.linspace(-1, 1, width, device=self.weight.device, dtype=self.weight.dtype)
        y = torch.linspace(-1, 1, height, device=self.weight.device, dtype=self.weight.dtype)
        horizontal = self.weight[:, 0, None, None] * x
        vertical = self.weight[:, 1, None, None] * y[:, None]
        return torch.sin(horizontal + vertical + self.bias[:, None, None])


class LearnedPosition(nn.Module):
    """``rows[y] + columns[x]`` from two learned tables ``(size, C)``, which other grid sizes interpolate."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(size, channels)))
        self.columns = nn.Parameter(nn.init.trunc_normal_(torch.empty(size, channels)))

    def forward(self, height: int, width: int) -> Tensor:
        """The bias of a grid, ``(C, height, width)``."""
        return _resize(self.rows, height)[:, :, None] + _resize(self.columns, width)[:, None, :]


def _resize(table: Tensor, size: int) -> Tensor:
    """A table ``(n, C)`` to ``(C, size)`` by linear interpolation; the first and the last row stay."""
    if len(table) == size:
        return table.T
    return F.interpolate(table.T[None], size, mode="linear", align_corners=True)[0]
