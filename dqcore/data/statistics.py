"""What a data set is like: sizes, formats, colours, broken files, and how much its patches hold."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ImageStat
from torch import Tensor
from torch.utils.data import Dataset

from dqcore.data.batches import item_loader
from dqcore.data.crops import CenterCrop
from dqcore.data.images import BrokenImageError, broken_as, image_to_tensor, read_image
from dqcore.data.reading import allow_pixels, format_of, named_limit
from dqcore.data.stored import open_stored
from dqcore.errors import InputError, whole_given
from dqcore.ops.patch_entropy import patch_entropy

__all__ = ["DataStatistics", "Spread", "measure_images"]

#: Entropies are kept of this many images at most, spread evenly over all.
ENTROPY_IMAGES = 2048


class Spread(NamedTuple):
    """Least, middle and largest of some whole numbers."""

    least: int
    median: int
    largest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """Of at least one value."""
        return cls(min(values), statistics.median_low(values), max(values))


@dataclass
class DataStatistics:
    """What was found in some images.

    Attributes:
        sizes: ``(width, height)`` of each readable image, in pixels, upright.
        formats: How many there are of each format, by Pillow's names.
        broken: Why each of the others cannot be read, with its name.
        entropies: Of the patches of at most 2048 images, nats, float32, ``(N,)``.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    entropies: Tensor = field(default_factory=lambda: torch.empty(0))
    _sums: Tensor = field(default_factory=lambda: torch.zeros(3, 3, dtype=torch.float64))

    @property
    def width(self) -> Spread:
        """Of the readable images, in pixels."""
        return Spread.of([width for width, _ in self.sizes])

    @property
    def height(self) -> Spread:
        """Of the readable images, in pixels."""
        return Spread.of([height for _, height in self.sizes])

    @property
    def short_side(self) -> Spread:
        """Of the readable images, in pixels."""
        return Spread.of([min(size) for size in self.sizes])

    @property
    def colour(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of red, green and blue over all pixels, in [-1, 1]."""
        count, total, squares = self._sums
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        return (mean / 127.5 - 1).tolist(), (deviation / 127.5).tolist()

    def add(self, found: _Found) -> None:
        """Add an image."""
        if found.reason:
            self.broken.append(found.reason)
            return
        self.sizes.append(found.size)
        self.formats[found.format] += 1
        self._sums += found.sums


class _Found(NamedTuple):
    """What an image is like; of a broken one, only why. ``sums``: pixels, their sum and that of squares, by channel."""

    size: tuple[int, int]
    format: str
    sums: Tensor
    entropies: Tensor | None
    reason: str = ""


def measure_images(
    paths: Sequence[Path],
    *,
    size: int = 256,
    patch_size: int = 16,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> DataStatistics:
    """Read images, and say what they are like.

    Args:
        paths: Images.
        size: Entropies are those of the middle square, resized to this many pixels.
        patch_size: Height and width of a patch in pixels; it divides ``size``.
        workers: Processes that read.
        progress: Called after each image with the number of images so far.

    Raises:
        InputError: A number is out of range.
    """
    whole_given(1, size=size, patch_size=patch_size)
    if size < patch_size or size % patch_size:
        raise InputError(f"patch_size: expected a divisor of size ({size}), got {patch_size}")
    measured = DataStatistics()
    entropies: list[Tensor] = []
    for number, found in enumerate(item_loader(_Measured(paths, size, patch_size), workers), 1):
        measured.add(found)
        if found.entropies is not None:
            entropies.append(found.entropies)
        if progress is not None:
            progress(number)
    if entropies:
        measured.entropies = torch.cat(entropies)
    return measured


class _Measured(Dataset[_Found]):
    def __init__(self, paths: Sequence[Path], size: int, patch_size: int) -> None:
        self.paths, self.crop, self.patch_size = list(paths), CenterCrop(size, size), patch_size
        count = min(len(paths), ENTROPY_IMAGES)
        self.limit = named_limit()
        self.chosen = set(random.Random(0).sample(range(len(paths)), count))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> _Found:
        path = self.paths[index]
        try:
            with allow_pixels(self.limit):
                image = read_image(path)
                with open_stored(path) as file:
                    format = format_of(file)
                with broken_as(path):
                    middle = self.crop.prepare(image) if index in self.chosen else None
        except BrokenImageError as error:
            return _Found((0, 0), "", torch.empty(0), None, str(error))
        stat = ImageStat.Stat(image)
        sums = torch.tensor([stat.count, stat.sum, stat.sum2], dtype=torch.float64)
        entropies = None
        if middle is not None:
            pixels = image_to_tensor(middle)
            entropies = patch_entropy(pixels[None], self.patch_size).flatten()
        return _Found(image.size, format, sums, entropies)
