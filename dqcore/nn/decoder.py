"""The decoder of VQGAN, whose input is told where each cell lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.nn.blocks import Level, Middle, Upsample, group_norm
from dqcore.nn.position import Position, position_biases

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """A latent map to images that are ``stem * 2 ** (len(multipliers) - 1)`` times as high and wide.

    Args:
        in_channels: Channels of the latent map.
        channels: Width of the last level.
        multipliers: Width of each level, as a multiple of ``channels``, from stride ``stem`` to the latent grid.
        num_blocks: Residual blocks of an encoder level; a decoder level has one more.
        attention: Strides at which each residual block is followed by attention.
        position: Which biases are added to the latent map (:mod:`dqcore.nn.position`).
        grid_size: Height and width of the latent grid that learned position tables are made for.
        groups: Groups of the normalizations.
        stem: Stride of the last level, whose channels become squares of so many pixels.
        middle_attention: Whether the first blocks have attention.
        linear_path: Add a linear function of each cell's vector to the cell's pixels; it starts at 0.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention: Sequence[int],
        position: Position = "none",
        grid_size: int = 32,
        groups: int = 32,
        stem: int = 1,
        middle_attention: bool = True,
        linear_path: bool = False,
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        self.position = position_biases(position, grid_size, in_channels)
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], groups, middle_attention)
        self.levels = nn.ModuleList(
            Level(before, after, num_blocks + 1, stem * 2**index in attention, groups)
            for index, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[1:])
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3 * stem**2, 3, padding=1)
        self.stem, self.stride = stem, stem << len(multipliers) - 1
        self.linear = nn.Conv2d(in_channels, 3 * self.stride**2, 1) if linear_path else None

    def forward(self, latent: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, 3, H * stride, W * stride)``; the output is not clamped."""
        given = latent
        for bias in self.position.values():
            latent = latent + bias(*latent.shape[-2:])
        x = self.middle(self.conv_in(latent))
        for index in reversed(range(len(self.levels))):
            x = self.levels[index](x)
            if index > 0:
                x = self.upsamples[index - 1](x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        images = F.pixel_shuffle(x, self.stem) if self.stem > 1 else x
        return images if self.linear is None else images + F.pixel_shuffle(self.linear(given), self.stride)
