"""Trained tokenizers and images, from what a user names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image
from dqcore.models.dqvae import DQVAE
from dqcore.models.vqgan import VQGAN

__all__ = ["hash_files", "image_batches", "load_tokenizer", "model_folder", "pick_device"]


def model_folder(path: Path) -> Path:
    """The folder of a saved model, or the one inside a training run's folder."""
    return path / "model" if (path / "model" / "config.json").is_file() else path


def load_tokenizer(path: Path, device: str = "auto") -> Any:
    """A :class:`dqcore.DQVAE` or :class:`dqcore.VQGAN`, whichever was saved, in evaluation mode.

    Args:
        path: A folder that ``save_pretrained`` wrote, a training run's folder, or the id of a repository on the Hub.
        device: See :func:`pick_device`.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: it is damaged, or another kind of model.
    """
    folder = model_folder(path)
    config = folder / "config.json"
    if folder.is_dir() and not config.is_file():
        raise FileNotFoundError(f"{path}: expected a folder with config.json and model.safetensors")
    kind: Any = DQVAE
    if config.is_file():
        try:
            saved = json.loads(config.read_text())
        except ValueError as error:
            raise ValueError(f"{config}: expected a JSON object ({error})") from error
        if isinstance(saved, dict) and saved.get("model") == VQGAN.__name__:
            kind = VQGAN
    return kind.from_pretrained(folder).to(pick_device(device))


def pick_device(device: str) -> torch.device:
    """``"auto"`` (the GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}") from error
    if chosen.type == "cuda" and not (chosen.index or 0) < torch.cuda.device_count():
        raise ValueError(f"device: there is no {device} on this machine")
    return chosen


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
