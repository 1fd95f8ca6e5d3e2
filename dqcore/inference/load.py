"""Trained tokenizers and images, from what a user names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.backends import choose_device as pick_device
from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image
from dqcore.models.auto import TOKENIZERS, load_saved

__all__ = ["hash_files", "image_batches", "load_tokenizer", "pick_device"]


def load_tokenizer(path: Path, device: str = "auto") -> Any:
    """:func:`dqcore.models.auto.load_saved` for tokenizers, on a device of :func:`dqcore.backends.choose_device`."""
    return load_saved(path, TOKENIZERS).to(pick_device(device))


def image_batches(paths: Sequence[Path], size: int, resize: int | None = None, batch_size: int = 8) -> Iterator[Tensor]:
    """Centre crops ``(B, 3, size, size)`` in [-1, 1], after resizing the shorter side to ``resize`` (by default size).

    Raises:
        BrokenImageError: an image cannot be read.
    """
    crop = CenterCrop(size, resize or size)
    for first in range(0, len(paths), batch_size):
        images = [crop.prepare(read_image(path)) for path in paths[first : first + batch_size]]
        yield torch.stack([image_to_tensor(image) for image in images])


def hash_files(paths: Sequence[Path]) -> str:
    """Which images a number was measured on: a hash of the files' contents, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
