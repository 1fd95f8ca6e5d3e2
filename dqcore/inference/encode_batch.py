"""A batch of images in memory to codes, by any tokenizer and at any ratio; every way from images to codes begins here.

:mod:`dqcore.inference.encode_shards` and :mod:`dqcore.inference.encode_streams` go on to files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.models.tokenizers.base import Encoding
from dqcore.stream.stream import MAX_PIXELS

__all__ = ["EncodedImages", "encode", "why_not"]


def encode(
    model: Any, images: Tensor, ratio: float | Sequence[float] | None = None, num_codes: int | Tensor | None = None
) -> Encoding:
    """``model.encode``, also for a tokenizer of one granularity, which takes neither ratio nor number of codes.

    Args:
        model: A tokenizer.
        images: ``(B, 3, H, W)`` in [-1, 1].
        ratio: Share of fine regions, see :meth:`dqcore.DQVAE.encode`; None leaves it to the router.
        num_codes: Codes of each image; instead of ``ratio``.

    Raises:
        ValueError: A ratio or a number of codes for a tokenizer with one granularity.
    """
    if ratio is None and num_codes is None:
        return model.encode(images)
    if model.config.num_granularities == 1:
        name = "ratio" if ratio is not None else "num_codes"
        raise InputError(f"{name}: this tokenizer has one granularity, its number of codes is fixed")
    return model.encode(images, ratio=ratio, num_codes=num_codes)


def why_not(config: Any, height: int, width: int, *, num_codes: int | None = None, streams: bool = True) -> str:
    """Why a photo of this size cannot be encoded; empty if it can.

    This finds the one bad photo among many before the model runs. What is wrong for every photo, the model reports.

    Args:
        config: The tokenizer's.
        height: Of the photo, in pixels.
        width: As ``height``.
        num_codes: Codes that it is to have.
        streams: Whether it is to be written as a ``.dqc`` stream.
    """
    stride = config.strides[0]
    regions = -(-height // stride) * -(-width // stride)
    if num_codes is not None and num_codes < regions and config.num_granularities > 1:
        size = f"{width}x{height} pixels"
        return f"num_codes: expected at least {regions}, one for each region of {size}, got {num_codes}"
    if streams and height * width > MAX_PIXELS:
        return f"{width}x{height} pixels are more than the {MAX_PIXELS} that a .dqc stream may have"
    return ""


class EncodedImages:
    """The encoder's feature maps and the router's scores of images: codes at another ratio cost a lookup.

    Args:
        model: A tokenizer in evaluation mode.
        images: ``(B, 3, H, W)`` in [-1, 1], sides multiples of the coarsest stride.
    """

    def __init__(self, model: Any, images: Tensor) -> None:
        self._model, self._images = model, images
        self._scanned = model.scan(images) if model.config.num_granularities > 1 else None

    @torch.no_grad()
    def encoding(self, ratio: float | Sequence[float] | None = None, num_codes: int | None = None) -> Encoding:
        """What :func:`encode` returns for the images, without running the encoder again."""
        if self._scanned is None:
            return encode(self._model, self._images, ratio, num_codes)
        return self._model.encode_scanned(self._images, self._scanned, ratio, num_codes)

    def at(self, detail: float) -> Encoding:
        """The encoding with a share of the detail that the tokenizer can spend.

        Args:
            detail: In [0, 1]: 0 gives each region one code, 1 as many as it can have. With two granularities this is
                the share of fine regions; with more, of the codes above one for each region.
        """
        number = self._model.config.num_granularities
        if number == 1:
            return self.encoding()
        if number == 2:
            return self.encoding(ratio=detail)
        regions = self._images.shape[2] * self._images.shape[3] // self._model.config.strides[0] ** 2
        return self.encoding(num_codes=regions + round(detail * regions * (4 ** (number - 1) - 1)))
