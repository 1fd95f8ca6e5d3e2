"""Batches of crops. Which images a step gets, and how they are cut, is a function of (seed, step) alone.

So the batches are the same for any number of workers, and a run may start at any step.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dqcore.data.crops import Crop
from dqcore.data.dataset import read_prepared
from dqcore.data.images import BrokenImageError, image_to_uint8, readable_images
from dqcore.data.steps import StepSampler
from dqcore.errors import InputError, whole_given

__all__ = ["Batch", "Crops", "Sample", "StepSampler", "batch_loader", "collate", "item_loader"]

Item = TypeVar("Item")

#: Bytes of prepared pixels that may be kept in memory.
MEMORY_LIMIT = 4 << 30
#: After this many broken files in a row, reading stops.
BROKEN_LIMIT = 100


class Sample(NamedTuple):
    """One crop.

    Attributes:
        image: ``(3, S, S)`` uint8.
        path: The file it was cut from.
        broken: A message for each broken file in whose place this one was taken.
    """

    image: Tensor
    path: str
    broken: tuple[str, ...]


class Batch(NamedTuple):
    """Several crops.

    Attributes:
        images: ``(B, 3, S, S)`` uint8.
        paths: The files they were cut from.
        broken: A message for each broken file in whose place another was taken.
    """

    images: Tensor
    paths: list[str]
    broken: list[str]


class Crops(Dataset[Sample]):
    """Crops of images. A crop is chosen by ``(epoch, index)``; this and the seed decide every random draw.

    In the place of a broken file the next readable one is taken, so that batches keep their size.

    Args:
        paths: Images.
        crop: What to cut from each.
        seed: Seed of the crops.
        in_memory: Read every image now, and keep its prepared pixels in memory.
        keep: Bytes of prepared pixels to keep once they were read; for loading without workers.
        fast_jpeg: Decode large JPEG files at a part of their size; see :class:`dqcore.data.Images`.

    Raises:
        InputError: A number is not whole or out of range; or, with ``in_memory``, the pixels need more than
            ``MEMORY_LIMIT`` bytes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        crop: Crop,
        *,
        seed: int = 0,
        in_memory: bool = False,
        keep: int = 0,
        fast_jpeg: bool = False,
    ) -> None:
        whole_given(seed=seed)
        whole_given(0, keep=keep)
        self.paths, self.crop, self.seed, self.fast_jpeg = list(paths), crop, seed, fast_jpeg
        #: The prepared image of a file, or a :class:`BrokenImageError`.
        self.read: Callable[[Path], Image.Image] = self._from_disk
        if keep:
            self.read = _Kept(self._from_disk, keep).read
        if in_memory:
            self.read = _InMemory(self.paths, self._from_disk).read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The crop of image ``index`` in ``epoch``.

        Raises:
            BrokenImageError: neither this image nor those after it can be read.
        """
        epoch, index = key
        broken: list[str] = []
        candidates = (self.paths[(index + offset) % len(self)] for offset in range(min(len(self), BROKEN_LIMIT)))
        for path, image in readable_images(candidates, lambda _, reason: broken.append(reason), read=self.read):
            rng = random.Random(f"{self.seed}/{epoch}/{index}")
            return Sample(image_to_uint8(self.crop.cut(image, rng)), str(path), tuple(broken))
        raise BrokenImageError(f"{len(broken)} files in a row cannot be read, the first: {broken[0]}")

    def _from_disk(self, path: Path) -> Image.Image:
        return read_prepared(path, self.crop, fast_jpeg=self.fast_jpeg)


class _InMemory:
    """Images that are read once and kept; a file that could not be read is tried again each time."""

    def __init__(self, paths: Iterable[Path], read: Callable[[Path], Image.Image]) -> None:
        self._images: dict[Path, Image.Image] = {}
        self._from_disk = read
        size = 0
        for path, image in readable_images(paths, lambda path, reason: None, read=read):
            size += 3 * image.width * image.height
            if size > MEMORY_LIMIT:
                raise InputError(
                    f"in_memory: the images need more than {MEMORY_LIMIT >> 30} GiB; read them from disk instead"
                )
            self._images[path] = image

    def read(self, path: Path) -> Image.Image:
        return self._images[path] if path in self._images else self._from_disk(path)


class _Kept:
    """Images that are kept once they were read, while there is room."""

    def __init__(self, read: Callable[[Path], Image.Image], room: int) -> None:
        self._from_disk, self._room = read, room
        self._images: dict[Path, Image.Image] = {}

    def read(self, path: Path) -> Image.Image:
        if path in self._images:
            return self._images[path]
        image = self._from_disk(path)
        size = 3 * image.width * image.height
        if size <= self._room:
            self._room -= size
            self._images[path] = image
        return image


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of these samples."""
    images = torch.stack([sample.image for sample in samples])
    broken = [path for sample in samples for path in sample.broken]
    return Batch(images, [sample.path for sample in samples], broken)


def batch_loader(crops: Crops, batches: Iterable[list[tuple[int, int]]], *, workers: int, pin: bool) -> DataLoader:
    """Load batches of crops; the global random state is left alone.

    Args:
        crops: The images.
        batches: ``(epoch, index)`` of every crop of each batch.
        workers: Processes that load; 0 loads in this one.
        pin: Put batches into pinned memory, from which a copy to a GPU need not wait.
    """
    return _loader(crops, workers, batch_sampler=batches, collate_fn=collate, pin_memory=pin)


def item_loader(items: Dataset[Item], workers: int) -> Iterable[Item]:
    """Every item of a data set in its order, each by itself as it is; the global random state is left alone."""
    return _loader(items, workers, batch_size=None, collate_fn=_as_it_is)


def _loader(items: Dataset[Any], workers: int, **options: Any) -> DataLoader:
    """A loader with random numbers of its own, whose workers leave signals to the main process."""
    whole_given(0, workers=workers)
    generator = torch.Generator()
    return DataLoader(items, num_workers=workers, generator=generator, worker_init_fn=_leave_signals, **options)


def _as_it_is(item: Item) -> Item:
    return item


def _leave_signals(worker: int) -> None:
    """Let a signal to the whole process group reach the main process alone, which ends its workers in good time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
