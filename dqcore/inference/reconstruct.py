"""One image of any size through a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.inference.measure import encode
from dqcore.metrics.coding import bits_per_pixel, codes_per_image
from dqcore.metrics.distortion import psnr

__all__ = ["Reconstruction", "pad_to_stride", "reconstruct"]


@dataclass(frozen=True)
class Reconstruction:
    """An image and what came back.

    Attributes:
        image: ``(3, H, W)`` in [-1, 1], as given.
        reconstruction: ``(3, H, W)`` in [-1, 1].
        padded: The image as it was encoded, its sides multiples of the coarsest stride.
        codes: Code map of the padded image, ``(h', w')``.
        grain: Its grain map, ``(h, w)``.
        psnr: dB, over the image without padding.
        num_codes: Codes, those of the padding included.
        bits_per_pixel: Their rate over the image without padding, see :func:`dqcore.evaluation.bits_per_pixel`.
    """

    image: Tensor
    reconstruction: Tensor
    padded: Tensor
    codes: Tensor
    grain: Tensor
    psnr: float
    num_codes: int
    bits_per_pixel: float


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column of ``(B, C, H, W)`` until both sides are multiples of ``stride``."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


@torch.no_grad()
def reconstruct(
    model: Any, image: Tensor, *, ratio: float | Sequence[float] | None = None, num_codes: int | None = None
) -> Reconstruction:
    """Encode and decode one image; it is padded to the coarsest stride and cropped back.

    Args:
        model: A tokenizer in evaluation mode.
        image: ``(3, H, W)`` in [-1, 1], of any size.
        ratio: Share of fine regions, see :meth:`dqcore.DQVAE.encode`.
        num_codes: Number of codes; not together with ``ratio``.
    """
    device = model.quantizer.codebook.weight.device
    padded = pad_to_stride(image[None].to(device), model.config.strides[0])
    encoding = encode(model, padded, ratio, num_codes)
    height, width = image.shape[1:]
    result = model.decode(encoding.codes, encoding.grain)[:, :, :height, :width].float().clamp(-1, 1).cpu()
    grain = encoding.grain.cpu()
    rate = bits_per_pixel(grain, model.config.codebook_size, model.config.num_granularities, height * width)
    return Reconstruction(
        image=image,
        reconstruction=result[0],
        padded=padded[0].cpu(),
        codes=encoding.codes[0].cpu(),
        grain=grain[0],
        psnr=float(psnr(image[None], result)),
        num_codes=int(codes_per_image(grain)),
        bits_per_pixel=float(rate),
    )
