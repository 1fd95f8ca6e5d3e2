"""The hierarchical encoder: one trunk, and a head for each granularity (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.nn.blocks import Downsample, Level, Middle, group_norm

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Images to a feature map for each granularity; with one stride it is the encoder of VQGAN.

    The trunk has a level for each resolution. At the stride of a granularity, the granularity's head makes its map
    from what the level returns, before it is down-sampled for the next level.

    Args:
        strides: Down-sampling factor of each granularity, coarse to fine, powers of two such as ``(16, 8)``.
        channels: Width of the trunk's first level.
        multipliers: Width of each level, as a multiple of ``channels``, from stride ``stem`` to the coarsest stride.
        num_blocks: Residual blocks of a level.
        attention: Strides at which each residual block of the trunk is followed by attention.
        out_channels: Channels of every feature map.
        groups: Groups of the normalizations.
        stem: Stride of the first level: squares of so many pixels become channels before the first convolution.
        middle_attention: Whether the heads have attention.
        linear_path: Add to every map a linear function of the four quarters of each of its cells.
    """

    def __init__(
        self,
        strides: Sequence[int],
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention: Sequence[int],
        out_channels: int,
        groups: int = 32,
        stem: int = 1,
        middle_attention: bool = True,
        linear_path: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.stem = tuple(strides), stem
        widths = [channels * multiplier for multiplier in multipliers]
        self.conv_in = nn.Conv2d(3 * stem**2, channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(before, after, num_blocks, stem * 2**index in attention, groups)
            for index, (before, after) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.heads = nn.ModuleList(
            GranularityHead(widths[(stride // stem).bit_length() - 1], out_channels, groups, middle_attention)
            for stride in strides
        )
        self.linear = nn.ModuleList(nn.Conv2d(12, out_channels, 1) for _ in strides) if linear_path else None

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` to maps ``(B, out_channels, H / stride, W / stride)``, coarse to fine."""
        x = self.conv_in(F.pixel_unshuffle(images, self.stem) if self.stem > 1 else images)
        maps: dict[int, Tensor] = {}
        for index, level in enumerate(self.levels):
            x = level(x)
            stride = self.stem * 2**index
            if stride in self.strides:
                maps[stride] = self.heads[self.strides.index(stride)](x)
            if index < len(self.downsamples):
                x = self.downsamples[index](x)
        if self.linear is None:
            return [maps[stride] for stride in self.strides]
        return [
            maps[stride] + linear(F.pixel_unshuffle(F.avg_pool2d(images, stride // 2), 2))
            for stride, linear in zip(self.strides, self.linear, strict=True)
        ]


class GranularityHead(nn.Module):
    """The trunk's features to the map of a granularity: residual, attention, residual, norm, swish, convolution."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32, attention: bool = True) -> None:
        super().__init__()
        self.middle = Middle(in_channels, groups, attention)
        self.norm = group_norm(in_channels, groups)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        return self.conv(F.silu(self.norm(self.middle(x))))
