"""What a tokenizer gets when its training ends: its router's thresholds, and code tables for short ``.dqc`` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import image_to_tensor, readable_images
from dqcore.data.listing import spread
from dqcore.models.tokenizers.base import Tokenizer
from dqcore.stream import fit_tables, save_code_tables

__all__ = ["calibrate", "can_calibrate", "some_images", "write_tables"]

_SIDE = 512  # pixels of a photo that are counted, at most, in each direction
_PHOTOS = {"cpu": 16, "cuda": 256}


def can_calibrate(model: Any) -> bool:
    """Whether the model's router has thresholds to :func:`calibrate`."""
    return hasattr(getattr(model, "router", None), "settle")


def some_images(model: Any, paths: Sequence[Path]) -> list[Tensor]:
    """Some training images at their own size, spread over all, for the two functions below; the same ones every time.

    Args:
        model: The trained model. One that is no tokenizer of dqcore gets no images.
        paths: Its training images; broken ones are passed over.

    Returns:
        Each ``(1, 3, H, W)`` float32 in [-1, 1], on the CPU.
    """
    if not isinstance(model, Tokenizer):
        return []
    number = _PHOTOS.get(model.quantizer.codebook.weight.device.type, 16)
    return list(_images(spread(paths, number), model.config.strides[0]))


@torch.no_grad()
def calibrate(model: Any, images: Sequence[Tensor]) -> bool:
    """Set a gain router's thresholds so that training images, at their own size, get the target shares on average.

    During training the thresholds follow random crops, and weights that still change.

    Args:
        model: The trained model; put into evaluation mode.
        images: Of :func:`some_images`.

    Returns:
        Whether there was anything to set, and an image to set it by.
    """
    if not (can_calibrate(model) and images):
        return False
    model.eval()
    device = model.quantizer.codebook.weight.device
    model.router.settle([model.scan(image.to(device))[1].gains for image in images])
    return True


def write_tables(model: Any, images: Sequence[Tensor], folder: Path) -> None:
    """Count the codes of training images, and write the tables beside the model; without images none.

    Tables that lie there are kept: a finished run that is resumed has the same model, and streams may need them.

    Args:
        model: The trained model; put into evaluation mode.
        images: Of :func:`some_images`.
        folder: Folder of the saved model.
    """
    if images:
        model.eval()
        save_code_tables(fit_tables(model, images), folder)


def _images(paths: Sequence[Path], stride: int) -> Iterator[Tensor]:
    """The middle of each image that can be read, ``(1, 3, H, W)``, in whole regions; smaller ones are passed over."""
    for _, picture in readable_images(paths, lambda path, reason: None):
        image = image_to_tensor(picture)
        height, width = (min(side, _SIDE) // stride * stride for side in image.shape[1:])
        if height and width:
            top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
            yield torch.clone(image[None, :, top : top + height, left : left + width])
