"""How far reconstructions are from their images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["psnr", "ssim"]


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``10 log10(2^2 / mean (x - y)^2)`` for values in [-1, 1].

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1].
        reconstructions: The same shape; values outside [-1, 1] are clamped.

    Returns:
        dB, float64, ``(B,)``; infinity where the two are equal.
    """
    x, y = _check(images, reconstructions)
    return 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity as Wang et al. (2004) define it: Gaussian window, sigma 1.5, 11 x 11, per colour channel.

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1]; at least 11 pixels high and wide.
        reconstructions: The same shape; values outside [-1, 1] are clamped.

    Returns:
        Means over channels and over the positions where the window fits, float64, ``(B,)``, at most 1.
    """
    x, y = _check(images, reconstructions)
    if min(x.shape[-2:]) < 11:
        raise InputError(f"images: expected at least 11 x 11 pixels, got {tuple(x.shape)}")
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of the range of values, 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3))


def _window(x: Tensor) -> Tensor:
    """Gaussian means of ``(B, C, H, W)`` at the positions where an 11 x 11 window fits."""
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    weights = weights / weights.sum()
    rows = x.flatten(0, 1)[:, None]
    rows = F.conv2d(F.conv2d(rows, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return rows.view(*x.shape[:2], *rows.shape[-2:])


def _check(images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    if images.dim() != 4 or images.shape != reconstructions.shape:
        raise InputError(
            f"reconstructions: expected the shape of images (B, C, H, W), got {tuple(reconstructions.shape)} "
            f"for {tuple(images.shape)}"
        )
    return images.double(), reconstructions.double().clamp(-1, 1)
