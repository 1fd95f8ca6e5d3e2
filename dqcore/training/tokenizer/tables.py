"""The last acts of a tokenizer's training: its router's thresholds, and its code tables for short ``.dqc`` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import image_to_tensor, readable_images
from dqcore.models.tokenizers.base import Tokenizer
from dqcore.nn.gain import GainRouter
from dqcore.stream import fit_tables, save_code_tables

__all__ = ["calibrate", "write_tables"]

_SIDE = 512  # pixels of a photo that are counted, at most, in each direction
_PHOTOS = {"cpu": 16, "cuda": 256}


@torch.no_grad()
def calibrate(model: Any, paths: Sequence[Path]) -> bool:
    """Set a gain router's thresholds so that training images, at their own size, get the target shares on average.

    In training they follow crops and weights that move.

    Args:
        model: The trained model; put into evaluation mode.
        paths: Its training images.

    Returns:
        Whether there was anything to set.
    """
    if not isinstance(getattr(model, "router", None), GainRouter):
        return False
    model.eval()
    device = model.quantizer.codebook.weight.device
    gains = [model.scan(image.to(device))[1].gains for image in _some(model, paths)]
    if gains:
        model.router.settle(gains)
    return bool(gains)


def write_tables(model: Any, paths: Sequence[Path], folder: Path) -> None:
    """Count the codes of some training images at their own size, and write the tables beside the model.

    A model that is no tokenizer of dqcore gets none, nor does one whose images all turn out broken.

    Args:
        model: The trained model; put into evaluation mode.
        paths: Its training images.
        folder: Folder of the saved model.
    """
    if not isinstance(model, Tokenizer):
        return
    model.eval()
    images = list(_some(model, paths))
    if images:
        save_code_tables(fit_tables(model, images), folder, keep=False)


def _some(model: Any, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Some training images, spread over all; the same ones every time."""
    number = _PHOTOS.get(model.quantizer.codebook.weight.device.type, 16)
    return _images(paths[:: max(1, len(paths) // number)][:number], model.config.strides[0])


def _images(paths: Sequence[Path], stride: int) -> Iterator[Tensor]:
    """The middle of each image that can be read, ``(1, 3, H, W)``, in whole regions; smaller ones are passed over."""
    for _, picture in readable_images(paths, lambda path, reason: None):
        image = image_to_tensor(picture)
        height, width = (min(side, _SIDE) // stride * stride for side in image.shape[1:])
        if height and width:
            top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
            yield torch.clone(image[None, :, top : top + height, left : left + width])
