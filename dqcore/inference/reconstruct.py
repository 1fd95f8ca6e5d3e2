"""One image of any size through a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import pad_to_stride
from dqcore.errors import InputError
from dqcore.inference.encode_batch import encode
from dqcore.inference.protocol import decode_to_size
from dqcore.inference.rate import StreamCost
from dqcore.metrics.coding import bits_per_pixel, codes_per_image
from dqcore.metrics.distortion import psnr
from dqcore.models.tokenizers.base import Encoding
from dqcore.ops.checks import check_tensor

#: pad_to_stride is among them for this file's old path, see :mod:`dqcore.compat.moved`.
__all__ = ["Reconstruction", "measure_reconstruction", "pad_to_stride", "reconstruct"]


@dataclass(frozen=True)
class Reconstruction:
    """An image and what came back.

    Attributes:
        image: ``(3, H, W)`` in [-1, 1], as given.
        reconstruction: ``(3, H, W)`` in [-1, 1], rounded to 8 bits.
        padded: The image as it was encoded: ``(3, H', W')``, sides multiples of the coarsest stride.
        codes: Code map of the padded image, int64, on the finest grid.
        grain: Grain map of the padded image, int64, on the coarsest grid.
        psnr: dB, over the image without padding.
        num_codes: Number of codes, those of the padding included.
        num_bytes: Bytes of the ``.dqc`` stream that holds them.
        fixed_bits_per_pixel: An estimate, without entropy coding: see :func:`dqcore.metrics.bits_per_pixel`.
    """

    image: Tensor
    reconstruction: Tensor
    padded: Tensor
    codes: Tensor
    grain: Tensor
    psnr: float
    num_codes: int
    num_bytes: int
    fixed_bits_per_pixel: float

    @property
    def bits_per_pixel(self) -> float:
        """Bits written for each pixel of the image without padding."""
        return 8 * self.num_bytes / (self.image.shape[1] * self.image.shape[2])

    @property
    def fine_ratio(self) -> float:
        """Share of regions at the finest granularity that occurs."""
        return float((self.grain == self.grain.max()).double().mean()) if int(self.grain.max()) else 0.0


def measure_reconstruction(
    model: Any,
    image: Tensor,
    padded: Tensor,
    encoding: Encoding,
    cost: StreamCost | None = None,
    result: Tensor | None = None,
) -> Reconstruction:
    """Decode one encoded image, and measure it.

    Args:
        model: A tokenizer in evaluation mode.
        image: ``(3, H, W)`` in [-1, 1].
        padded: The image as it was encoded.
        encoding: Of the one image, a batch of 1.
        cost: Counts the bytes; by default with uniform tables.
        result: What ``decode_to_size`` made of the encoding, ``(3, H, W)``, where that is known already.
    """
    height, width = image.shape[1:]
    config, codes, grain = model.config, encoding.codes[0].cpu(), encoding.grain.cpu()
    if result is None:
        result = decode_to_size(model, encoding.codes, encoding.grain, height, width)[0]
    result = result.cpu()
    return Reconstruction(
        image=image.cpu(),
        reconstruction=result,
        padded=padded.cpu(),
        codes=codes,
        grain=grain[0],
        psnr=float(psnr(image.cpu()[None], result[None])),
        num_codes=int(codes_per_image(grain)),
        num_bytes=(cost or StreamCost.uniform(config)).bytes_of(codes, grain[0], height, width),
        fixed_bits_per_pixel=float(
            bits_per_pixel(grain, config.codebook_size, config.num_granularities, height * width)
        ),
    )


@torch.no_grad()
def reconstruct(
    model: Any,
    image: Tensor,
    *,
    ratio: float | Sequence[float] | None = None,
    num_codes: int | None = None,
    cost: StreamCost | None = None,
) -> Reconstruction:
    """Encode and decode one image; it is padded to the coarsest stride, cropped back and rounded to 8 bits.

    Args:
        model: A tokenizer in evaluation mode.
        image: ``(3, H, W)`` in [-1, 1], of any size.
        ratio: Share of fine regions, see :meth:`dqcore.DQVAE.encode`.
        num_codes: Number of codes; not together with ``ratio``.
        cost: Counts the bytes that the codes take; by default with uniform tables, as for a model that has none.

    Raises:
        InputError: An image of another shape, or see :meth:`dqcore.DQVAE.encode`.
        TypeError: ``image`` is no tensor of floating-point numbers.
    """
    check_tensor("image", image, dim=3)
    if image.shape[0] != 3 or image.numel() == 0 or image.is_meta:
        raise InputError(f"image: expected (3, H, W) with pixels, got {tuple(image.shape)} on {image.device}")
    device = model.quantizer.codebook.weight.device
    padded = pad_to_stride(image[None].to(device), model.config.strides[0])
    return measure_reconstruction(model, image, padded[0], encode(model, padded, ratio, num_codes), cost)
