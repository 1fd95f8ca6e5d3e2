"""The images of a training run: which ones, how they are cut, and in what order they come."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqcore.backends import this_machine
from dqcore.data.batches import MEMORY_LIMIT, Batch, Crops, StepSampler, batch_loader
from dqcore.data.crops import WholeImage
from dqcore.data.listing import list_images, source_root
from dqcore.data.preprocessing import crop_of
from dqcore.data.splits import training_split
from dqcore.distributed import World
from dqcore.training.record import check_outside, held_out_before
from dqcore.training.tokenizer.options import TokenizerTraining

#: Up to this many images may stay in memory once they were read; of more, a run sees many only once.
KEPT_IMAGES = 5000
#: The longer side of a photograph, as a multiple of the shorter, with room to spare.
LONG_SIDE = 2


@dataclass(frozen=True)
class TrainingImages:
    """Training crops and validation images of a run.

    Attributes:
        options: The run's resolved options.
        world: This process.
        training: Random crops.
        validation: Whole images at their native size; empty if no image is held out.
        fingerprint: Hash of the file names of both, relative to their folders.
        kept: Whether training images stay in memory once they were read.
    """

    options: TokenizerTraining
    world: World
    training: Crops
    validation: Crops
    fingerprint: str
    kept: bool = False

    @property
    def reading(self) -> str:
        """How the training images are read, in words."""
        if self.kept or self.options.in_memory:
            return "images stay in memory"
        return f"{self.options.workers or 'no'} processes read images"

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in a pass over the training images."""
        return self._sampler(0, 0).steps_per_epoch

    @property
    def description(self) -> dict[str, Any]:
        """What ``config.json`` says of the images; a resumed run must have the same."""
        return {"training": len(self.training), "validation": len(self.validation), "fingerprint": self.fingerprint}

    def batches(self, start: int, stop: int) -> Iterable[Batch]:
        """This process's batches of steps ``start .. stop - 1``."""
        return self._loader(self.training, self._sampler(start, stop))

    def validation_batches(self) -> Iterable[Batch]:
        """This process's part of the validation images, in their order, one by one because their sizes differ."""
        mine = range(self.world.rank, len(self.validation), self.world.size)
        keys = [[(0, index)] for index in mine]
        return self._loader(self.validation, keys)

    def _sampler(self, start: int, stop: int) -> StepSampler:
        options, world = self.options, self.world
        assert options.batch_size is not None
        return StepSampler(
            len(self.training),
            options.batch_size,
            seed=options.seed,
            start=start,
            stop=stop,
            rank=world.rank,
            processes=world.size,
            parts=options.accumulate,
        )

    def _loader(self, crops: Crops, keys: Iterable[list[tuple[int, int]]]) -> Iterable[Batch]:
        return batch_loader(crops, keys, workers=self.options.workers or 0, pin=self.world.device.type == "cuda")


def find_images(options: TokenizerTraining, world: World) -> TrainingImages:
    """The images that resolved options ask for.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder is empty, or holds fewer images than a batch, or the run lies in it.
    """
    assert options.data is not None and options.resize is not None and options.image_size is not None
    for source in (options.data, options.validation):
        check_outside(options.out, source)
    training, validation, roots = _listed(options)
    digest = hashlib.sha256()
    for paths, root in zip((training, validation), roots, strict=True):
        for path in paths:
            digest.update(os.fsencode(os.path.relpath(path, root)) + b"\n")
        digest.update(b"\n")
    assert options.crop is not None
    cut = crop_of(options.crop, options.image_size, options.resize, flip=options.flip)
    options, keep = _how_to_read(options, len(training), world)
    images = TrainingImages(
        options,
        world,
        Crops(training, cut, seed=options.seed, in_memory=options.in_memory, keep=keep, fast_jpeg=options.fast_jpeg),
        Crops(validation, WholeImage()),
        digest.hexdigest(),
        bool(keep),
    )
    _ = images.steps_per_epoch  # raises now if a batch is larger than the folder
    return images


def _how_to_read(options: TokenizerTraining, count: int, world: World) -> tuple[TokenizerTraining, int]:
    """The options with a number of workers, and how many bytes of images to keep in memory instead.

    A folder that is small beside the memory is read once, without workers: prepared images are small, and decoding a
    photograph again for each crop takes longer than a step of a small network.
    """
    if options.workers or options.in_memory:
        return options, 0
    machine = this_machine(world.device)
    share = min(MEMORY_LIMIT, machine.memory // 8)
    size = options.resize or 0
    if options.crop != "random-resized" and count <= KEPT_IMAGES and count * LONG_SIDE * 3 * size**2 <= share:
        return dataclasses.replace(options, workers=0), int(share)
    if options.workers == 0:
        return options, 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return dataclasses.replace(options, workers=min(8, max(1, machine.cores // local - 1))), 0


def _listed(options: TokenizerTraining) -> tuple[list[Path], list[Path], tuple[Path, Path]]:
    """Training and validation images, and the folders that their names are relative to."""
    assert options.data is not None
    paths, root = list_images(options.data), source_root(options.data)
    if options.validation is not None:
        return paths, list_images(options.validation), (root, source_root(options.validation))
    before = held_out_before(options.out, resume=options.resume)
    return *training_split(options.data, paths, options.validation_share, before), (root, root)
