"""Batches as a pure function of (seed, step): the same for any number of workers, and from any step on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dqcore.data.crops import Crop
from dqcore.data.images import BrokenImageError, image_to_uint8, read_image
from dqcore.errors import InputError

#: Bytes of prepared pixels that a packed folder may hold.
PACKED_LIMIT = 4 << 30
#: Broken files in a row after which a folder is given up.
BROKEN_LIMIT = 100


class Sample(NamedTuple):
    """One crop: ``(3, S, S)`` uint8, the file it came from, and the broken files passed over on the way to it."""

    image: Tensor
    path: str
    broken: tuple[str, ...]


class Batch(NamedTuple):
    """``(B, 3, S, S)`` uint8, the files, and the broken files met."""

    images: Tensor
    paths: list[str]
    broken: list[str]


class Crops(Dataset[Sample]):
    """Crops of images, keyed by ``(epoch, index)``; the key and the seed decide every random draw.

    A broken file is replaced by the next readable one, so that a batch never shrinks.

    Args:
        paths: Images.
        crop: What to cut from each.
        seed: Seed of the crops.
        packed: Decode every image now and keep its prepared pixels in memory.

    Raises:
        ValueError: ``packed`` and the pixels do not fit in ``PACKED_LIMIT`` bytes.
        BrokenImageError: no image can be read (``packed``), or too many in a row cannot.
    """

    def __init__(self, paths: Sequence[Path], crop: Crop, *, seed: int = 0, packed: bool = False) -> None:
        self.paths, self.crop, self.seed = list(paths), crop, seed
        self._packed = self._pack() if packed else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The crop of image ``index`` in ``epoch``."""
        epoch, index = key
        broken: list[str] = []
        for offset in range(min(len(self), BROKEN_LIMIT)):
            place = (index + offset) % len(self)
            try:
                prepared = self._prepared(place)
            except BrokenImageError as error:
                broken.append(str(error))
                continue
            rng = random.Random(f"{self.seed}/{epoch}/{index}")
            return Sample(image_to_uint8(self.crop.cut(prepared, rng)), str(self.paths[place]), tuple(broken))
        raise BrokenImageError(f"{len(broken)} files in a row cannot be read, the first: {broken[0]}")

    def _prepared(self, index: int) -> Image.Image:
        if self._packed is None:
            return self.crop.prepare(read_image(self.paths[index]))
        stored = self._packed[index]
        if isinstance(stored, BrokenImageError):
            raise stored
        return stored

    def _pack(self) -> list[Image.Image | BrokenImageError]:
        packed: list[Image.Image | BrokenImageError] = []
        size = 0
        for path in self.paths:
            try:
                image = self.crop.prepare(read_image(path))
            except BrokenImageError as error:
                packed.append(error)
                continue
            size += 3 * image.width * image.height
            if size > PACKED_LIMIT:
                raise InputError(
                    f"packed: the images need more than {PACKED_LIMIT >> 30} GiB; read them from disk instead"
                )
            packed.append(image)
        return packed


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Keys of the batches of steps ``start .. stop - 1``; each epoch is a new order, its incomplete batch is dropped.

    Args:
        num_images: Images in the data set.
        batch_size: Images in a batch of this process.
        seed: Seed of the order.
        start: First step.
        stop: Step to stop before.
        rank: This process: it takes part ``rank`` of every global batch of ``world * batch_size`` images.
        world: Number of processes.

    Raises:
        ValueError: the global batch is larger than the data set.
    """

    def __init__(
        self, num_images: int, batch_size: int, *, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size * world > num_images:
            size = f"{batch_size}" if world == 1 else f"{batch_size} on each of {world} processes"
            raise InputError(f"batch_size: {size} is more than the {num_images} images there are")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.num_images // (self.batch_size * self.world)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        current, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != current:
                gen = torch.Generator().manual_seed(random.Random(f"{self.seed}/{epoch}").getrandbits(63))
                current, order = epoch, torch.randperm(self.num_images, generator=gen)
            first = (place * self.world + self.rank) * self.batch_size
            yield [(epoch, index) for index in order[first : first + self.batch_size].tolist()]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples to a batch."""
    images = torch.stack([sample.image for sample in samples])
    broken = [path for sample in samples for path in sample.broken]
    return Batch(images, [sample.path for sample in samples], broken)


def batch_loader(crops: Crops, batches: Iterable[list[tuple[int, int]]], *, workers: int, pin: bool) -> DataLoader:
    """A loader over ``sampler``'s batches that leaves the global random state untouched."""
    return DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        generator=torch.Generator(),
    )
