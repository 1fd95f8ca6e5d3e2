"""How far reconstructions are from their images.

SSIM and MS-SSIM are those of torchmetrics, which is imported when the first is asked for: that takes seconds, and
reconstructing a photo needs PSNR alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dqcore.errors import InputError

__all__ = ["MAX_PSNR", "ms_ssim", "psnr", "round_to_8bit", "similarities", "ssim"]

#: PSNR in dB of an image that came back unchanged; infinity would make the mean over images infinite.
MAX_PSNR = 100.0
#: Height and width from which on the fifth scale of MS-SSIM holds a window of 11 x 11.
MS_SSIM_SIZE = 176
#: Weight of each scale, the largest picture first, in Wang et al., 2003.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def round_to_8bit(images: Tensor) -> Tensor:
    """The nearest values that an 8-bit picture can hold, ``n / 127.5 - 1`` for whole ``n`` from 0 to 255.

    Args:
        images: Any shape, floating, about [-1, 1]; values outside are clamped.

    Returns:
        float32, the same shape.
    """
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``10 log10(2^2 / mean (x - y)^2)`` for values in [-1, 1].

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1].
        reconstructions: The same shape; values outside [-1, 1] are clamped.

    Returns:
        dB, float64, ``(B,)``, at most :data:`MAX_PSNR`.
    """
    x, y = _check(images, reconstructions)
    return (10 * torch.log10(4 / (x.double() - y.double()).square().mean((1, 2, 3)))).clamp(max=MAX_PSNR)


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) with a Gaussian window of 11 x 11, sigma 1.5, on each colour channel.

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1]; at least 11 pixels high and wide.
        reconstructions: The same shape; values outside [-1, 1] are clamped.

    Returns:
        Means over channels and pixels (the picture is mirrored at its border), float64, ``(B,)``, at most 1.
    """
    x, y = _check(images, reconstructions)
    if min(x.shape[-2:]) < 11:
        raise InputError(f"images: expected at least 11 x 11 pixels, got {tuple(x.shape)}")
    return _joined([_scale(a[None], b[None])[0] for a, b in zip(x, y, strict=True)], x)


def ms_ssim(images: Tensor, reconstructions: Tensor) -> Tensor | None:
    """Multi-scale structural similarity (Wang et al., 2003) on five scales, with the windows of :func:`ssim`.

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1].
        reconstructions: The same shape; values outside [-1, 1] are clamped.

    Returns:
        float64, ``(B,)``, at most 1; None where a side is shorter than 176 pixels, the least that has five scales.
    """
    x, y = _check(images, reconstructions)
    if min(x.shape[-2:]) < MS_SSIM_SIZE:
        return None
    return similarities(x, y)[1]


def similarities(images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor | None]:
    """:func:`ssim` and :func:`ms_ssim` in three fifths of the time: the largest scale is that of both.

    Args:
        images: ``(B, C, H, W)``, floating, in [-1, 1]; at least 11 pixels high and wide.
        reconstructions: The same shape; values outside [-1, 1] are clamped.
    """
    x, y = _check(images, reconstructions)
    if min(x.shape[-2:]) < MS_SSIM_SIZE:
        return ssim(x, y), None
    pairs = [_all_scales(a[None], b[None]) for a, b in zip(x, y, strict=True)]
    return _joined([first for first, _ in pairs], x), _joined([product for _, product in pairs], x)


def _all_scales(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM of an image ``(1, C, H, W)``, and the product over its scales."""
    full, contrast = _scale(image, other)
    first, terms = full, []
    for _ in MS_SSIM_WEIGHTS[1:]:
        terms.append(contrast)
        image, other = avg_pool2d(image, 2), avg_pool2d(other, 2)
        full, contrast = _scale(image, other)
    weights = torch.tensor(MS_SSIM_WEIGHTS, dtype=image.dtype, device=image.device)[:, None]
    return first, (torch.stack([*terms, full]).relu() ** weights).prod(0)


def _scale(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity, and the mean of its contrast term over the places where the window fits; each ``(1,)``."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    options: Any = {"data_range": 2.0, "reduction": "none", "return_contrast_sensitivity": True}
    found: Any = structural_similarity_index_measure(other, image, **options)
    return found


def _joined(each: list[Tensor], like: Tensor) -> Tensor:
    """One number of each image, ``(B,)`` float64; each was measured alone, so that none depends on its batch."""
    return torch.cat([value.reshape(1).double() for value in each]) if each else like.new_zeros(0, dtype=torch.float64)


def _check(images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    """Both of one shape, in float32 or float64, the reconstructions clamped to the range of values."""
    for name, values in (("images", images), ("reconstructions", reconstructions)):
        if not values.is_floating_point():
            floats = f"dqcore.data.images.uint8_to_float({name})" if values.dtype == torch.uint8 else "convert them"
            raise TypeError(f"{name}: expected floating-point values in [-1, 1], got {values.dtype}: {floats}")
    if images.dim() != 4:
        raise InputError(f"images: expected (B, C, H, W), got {tuple(images.shape)}")
    if images.shape != reconstructions.shape:
        raise InputError(
            f"reconstructions: expected the shape of images (B, C, H, W), got {tuple(reconstructions.shape)} "
            f"for {tuple(images.shape)}"
        )
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    return images.to(dtype), reconstructions.to(dtype).clamp(-1, 1)
