"""The convolutional blocks of VQGAN: residual, attention, one resolution level, and the layers between levels."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttnBlock", "Downsample", "Level", "Middle", "ResBlock", "Upsample", "group_norm"]


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """The normalization used everywhere: affine, eps 1e-6; ``groups`` must divide ``channels``."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """``shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x))))))``, 3x3 convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; the shortcut is a 1x1 convolution where they differ.
        groups: Groups of the normalizations.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class AttnBlock(nn.Module):
    """``x + proj(attention(norm(x)))``: one head over all cells of the map, scale ``channels ** -0.5``."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape; the ``(HW, HW)`` weights are never stored."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, 1, channels, height * width).mT
        if qkv.stride(-1) != 1:  # PyTorch's fused kernels ask for it; without them the weights would be stored
            qkv = qkv.contiguous()
        query, key, value = qkv.unbind(1)  # each (B, 1, HW, C)
        out = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(out.mT.reshape(batch, channels, height, width))


class Middle(nn.Module):
    """Residual, attention (or not), residual: the first blocks of the decoder and of each encoder head."""

    def __init__(self, channels: int, groups: int = 32, attention: bool = True) -> None:
        super().__init__()
        self.block1 = ResBlock(channels, channels, groups)
        self.attention = AttnBlock(channels, groups) if attention else nn.Identity()
        self.block2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return self.block2(self.attention(self.block1(x)))


class Level(nn.Module):
    """The blocks of one resolution: ``num_blocks`` residual blocks, each followed by attention if ``attention``."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, attention: bool, groups: int = 32) -> None:
        super().__init__()
        sizes = [in_channels, *[out_channels] * num_blocks]
        self.blocks = nn.ModuleList(ResBlock(a, b, groups) for a, b in itertools.pairwise(sizes))
        self.attentions = nn.ModuleList(AttnBlock(out_channels, groups) for _ in range(num_blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[index](x)
        return x


class Downsample(nn.Module):
    """Halve height and width: a row of zeros below and a column at the right, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H / 2, W / 2)``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: every value is repeated, then comes a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, 2 H, 2 W)``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
