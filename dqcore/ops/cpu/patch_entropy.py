"""Patch entropy on the CPU, where each pixel is added only to the bins near it.

With centres ``spacing`` apart, the kernel of a pixel m spacings beyond its nearest centre is at most
``exp(-(m spacing / sigma)^2 / 2)`` of its largest value. Where that is below ``TAIL``, the bin changes no entropy by
1e-6. So a pixel is added to its nearest 2m bins only: to two of 32 at the default sigma. Everything is float64: in a
flat patch half-way between two centres float32's rounding error of 6e-8 would grow to 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dqcore.ops.reference.patch_entropy import GREY, NO_MASS

__all__ = ["patch_entropy_cpu"]

PIXELS = 2**17  # pixels of a block, of which a float64 temporary takes 1 MB
TAIL = 1e-8  # share of a kernel's largest value below which a bin is left out


def patch_entropy_cpu(images: Tensor, patch_size: int, low: float, high: float, num_bins: int, sigma: float) -> Tensor:
    """:func:`dqcore.ops.patch_entropy` for float16, bfloat16 and float32 on the CPU."""
    batch, _, height, width = images.shape
    entropy = torch.empty(batch, height // patch_size, width // patch_size, dtype=torch.float32)
    spacing = (high - low) / (num_bins - 1)
    for pixels, place in _blocks(images, entropy, patch_size):
        offset = _grey(pixels).sub_(low).div_(spacing)
        place.copy_(_entropy(_histogram(offset, patch_size, num_bins, spacing / sigma)))
    return entropy


def _blocks(images: Tensor, entropy: Tensor, patch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of whole patches, each with the part of the result that it fills; a block has a bounded size."""
    _, rows, columns = entropy.shape
    most = max(1, PIXELS // patch_size**2)
    some_images, some_rows = max(1, most // max(1, rows * columns)), max(1, most // max(1, columns))
    if entropy.numel() == 0:
        return
    for image, out in zip(images.split(some_images), entropy.split(some_images), strict=True):
        strips = zip(image.split(some_rows * patch_size, 2), out.split(some_rows, 1), strict=True)
        for strip, line in strips:
            yield from zip(strip.split(most * patch_size, 3), line.split(most, 2), strict=True)


def _grey(pixels: Tensor) -> Tensor:
    """Grey values ``(n, H, W)`` float64; a copy."""
    if pixels.shape[1] == 1:
        return pixels[:, 0].to(torch.float64, copy=True)
    red, green, blue = pixels.double().unbind(1)
    return red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _histogram(offset: Tensor, patch_size: int, num_bins: int, sharpness: float) -> Tensor:
    """Mean kernel of each patch at each bin, ``(n, r, c, num_bins)`` float64.

    Args:
        offset: ``(n, H, W)``, grey values as their distance from the first centre, in spacings. Overwritten.
        patch_size: Side of a patch.
        num_bins: Number of centres.
        sharpness: Spacing divided by sigma.
    """
    images, height, width = offset.shape
    rows, columns = height // patch_size, width // patch_size
    window = min(num_bins, 2 * math.ceil(math.sqrt(-2 * math.log(TAIL)) / sharpness))
    first = offset.floor().sub_(window // 2 - 1).clamp_(0, num_bins - window).nan_to_num_(nan=0.0)
    distance = offset.sub_(first).mul_(sharpness).flatten()
    patches = torch.arange(images * rows * columns).view(images, rows, 1, columns, 1) * num_bins
    target = first.long().view(images, rows, patch_size, columns, patch_size).add_(patches).flatten()
    histogram = torch.zeros(patches.numel() * num_bins, dtype=torch.float64)
    for _ in range(window):
        histogram.scatter_add_(0, target, distance.square().mul_(-0.5).exp_())
        distance.sub_(sharpness)
        target.add_(1)
    return histogram.view(images, rows, columns, num_bins).div_(patch_size**2)


def _entropy(histogram: Tensor) -> Tensor:
    """Entropy of each histogram along the last dimension."""
    mass = histogram.sum(-1, keepdim=True)
    share = torch.where(mass < NO_MASS, 0, histogram / mass)
    return -torch.special.xlogy(share, share).sum(-1)
