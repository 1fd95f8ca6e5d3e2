"""A saved tokenizer measured on a folder of images, with the protocol that makes the numbers comparable."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import BrokenImageError, list_images
from dqcore.errors import InputError
from dqcore.inference.load import hash_files, image_batches, load_tokenizer
from dqcore.inference.measure import Evaluation, evaluate_tokenizer
from dqcore.nn.perceptual import PerceptualLoss

__all__ = ["evaluate_folder"]


def evaluate_folder(
    folder: Path,
    checkpoint: Path,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    ratio: float | None = None,
    num_codes: int | None = None,
    perceptual_weights: Path | None = None,
    batch_size: int = 8,
    device: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Evaluation, dict[str, Any], list[str]]:
    """Measure on centre crops; ``dqcore evaluate --help`` describes the arguments.

    Returns:
        The numbers, the protocol (images, their hash, sizes, seed), and the broken files passed over, with reasons.

    Raises:
        ValueError: an argument out of range, or no image can be read.
    """
    for name, value in {"limit": limit, "batch_size": batch_size, "image_size": image_size, "resize": resize}.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    paths = list_images(folder)
    if limit is not None and limit < len(paths):
        chosen = set(random.Random(seed).sample(range(len(paths)), limit))
        paths = [path for index, path in enumerate(paths) if index in chosen]
    model = load_tokenizer(checkpoint, device)
    size = image_size or model.config.resolution
    if size % model.config.strides[0] or size < 16:
        raise InputError(f"image_size: expected a multiple of {model.config.strides[0]}, at least 16, got {size}")
    if resize is not None and resize < size:
        raise InputError(f"resize: expected at least image_size ({size}), got {resize}")
    perceptual = None
    if perceptual_weights is not None:
        perceptual = PerceptualLoss(perceptual_weights).to(next(model.parameters()).device)
    good: list[Path] = []
    broken: list[str] = []
    batches = _batches(paths, size, resize, batch_size, good, broken, progress)
    result = evaluate_tokenizer(model, batches, ratio=ratio, num_codes=num_codes, perceptual=perceptual)
    protocol = {
        "images": len(good),
        "broken images": len(broken),
        "data hash": hash_files(good),
        "resize": resize or size,
        "image size": size,
        "ratio": ratio,
        "num codes": num_codes,
        "seed": seed,
    }
    return result, protocol, broken


def _batches(
    paths: Sequence[Path],
    size: int,
    resize: int | None,
    batch_size: int,
    good: list[Path],
    broken: list[str],
    progress: Callable[[int, int], object] | None,
) -> Iterator[Tensor]:
    """Batches of the readable images; notes which those are, and why the others are not."""
    images: list[Tensor] = []
    for number, path in enumerate(paths, 1):
        try:
            images += image_batches([path], size, resize)
            good.append(path)
        except BrokenImageError as error:
            broken.append(str(error))
        if images and (len(images) == batch_size or number == len(paths)):
            yield torch.cat(images)
            images = []
        if progress is not None:
            progress(number, len(paths))
    if not good:
        raise InputError(f"folder: none of its {len(paths)} images can be read, the first: {broken[0]}")
