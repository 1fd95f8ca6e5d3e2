"""How far reconstructions are from their images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["psnr", "ssim"]


def psnr(
    images: Tensor, reconstructions: Tensor, *, dtype: torch.dtype = torch.float64, smallest_error: float = 0.0
) -> Tensor:
    """Peak signal-to-noise ratio, ``10 log10(2^2 / mean (x - y)^2)`` for values in [-1, 1].

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1].
        reconstructions: The same shape; values outside [-1, 1] are clamped.
        dtype: Computed in this precision. Evaluation uses float64; validation during training uses float32, which is
            the faster one on a GPU.
        smallest_error: A smaller mean squared error counts as this. Above 0 the result stays finite where the two are
            equal: ``1e-10``, as in validation during training, allows at most 106 dB.

    Returns:
        dB, of ``dtype``, ``(B,)``; with ``smallest_error=0`` infinity where the two are equal.
    """
    x, y = _check(images, reconstructions, dtype)
    return 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)).clamp_min(smallest_error))


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) with a Gaussian window of 11 x 11, sigma 1.5, on each colour channel.

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1]; at least 11 pixels high and wide.
        reconstructions: The same shape; values outside [-1, 1] are clamped.

    Returns:
        Means over channels and over the places where the window fits, float64, ``(B,)``, at most 1.
    """
    x, y = _check(images, reconstructions, torch.float64)
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
    """Weighted means of ``(B, C, H, W)`` over Gaussian windows of 11 x 11, wherever one fits."""
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    weights = weights / weights.sum()
    rows = x.flatten(0, 1)[:, None]
    rows = F.conv2d(F.conv2d(rows, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return rows.view(*x.shape[:2], *rows.shape[-2:])


def _check(images: Tensor, reconstructions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both of one shape and in ``dtype``, the reconstructions clamped to the range of values."""
    if images.dim() != 4 or images.shape != reconstructions.shape:
        raise InputError(
            f"reconstructions: expected the shape of images (B, C, H, W), got {tuple(reconstructions.shape)} "
            f"for {tuple(images.shape)}"
        )
    return images.to(dtype), reconstructions.to(dtype).clamp(-1, 1)
