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
        padded: The image as it was encoded: ``(3, H', W')``, sides multiples of the coarsest stride.
        codes: Code map of the padded image, int64, on the finest grid.
        grain: Grain map of the padded image, int64, on the coarsest grid.
        psnr: dB, over the image without padding.
        num_codes: Number of codes, those of the padding included.
        bits_per_pixel: Their rate over the image without padding, see :func:`dqcore.metrics.bits_per_pixel`.
    """

    image: Tensor
    reconstruction: Tensor
    padded: Tensor
    codes: Tensor
    grain: Tensor
    psnr: float
    num_codes: int
    bits_per_pixel: float

    @classmethod
    def of(
        cls, image: Tensor, padded: Tensor, codes: Tensor, grain: Tensor, reconstruction: Tensor, config: Any
    ) -> Reconstruction:
        """Measure one reconstructed image.

        Args:
            image: ``(3, H, W)`` in [-1, 1].
            padded: The image as it was encoded.
            codes: Its code map.
            grain: Its grain map.
            reconstruction: ``(3, H, W)`` in [-1, 1], without padding.
            config: The tokenizer's configuration.
        """
        grains, pixels = grain[None], image.shape[1] * image.shape[2]
        return cls(
            image=image,
            reconstruction=reconstruction,
            padded=padded,
            codes=codes,
            grain=grain,
            psnr=float(psnr(image[None], reconstruction[None])),
            num_codes=int(codes_per_image(grains)),
            bits_per_pixel=float(bits_per_pixel(grains, config.codebook_size, config.num_granularities, pixels)),
        )


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
    codes, grain = encoding.codes[0].cpu(), encoding.grain[0].cpu()
    return Reconstruction.of(image, padded[0].cpu(), codes, grain, result[0], model.config)
