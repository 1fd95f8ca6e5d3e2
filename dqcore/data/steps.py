"""Which images a training step gets: a function of the seed and the step alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from dqcore.errors import InputError, whole_given

__all__ = ["StepSampler", "check_rank"]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Which crops make up the batches of steps ``start .. stop - 1``: ``(epoch, index)`` of each, for :class:`Crops`.

    Each epoch has an order of its own. The images that do not fill a last batch are left out of it.

    Args:
        num_images: Images in the data set.
        batch_size: Images in a batch of this process.
        seed: Seed of the orders.
        start: First step.
        stop: Step to stop before.
        rank: Number of this process. Of every global batch, ``processes * batch_size`` images, it takes this part.
        processes: How many processes there are.
        parts: Batches that make up a step, one after the other; of each, every process has its part.

    Raises:
        InputError: A number is not whole or out of range, or the global batch is larger than the data set.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        processes: int = 1,
        parts: int = 1,
    ) -> None:
        whole_given(1, num_images=num_images, batch_size=batch_size, processes=processes, parts=parts)
        whole_given(0, start=start, stop=stop)
        whole_given(seed=seed)
        check_rank(rank, processes)
        if batch_size * processes * parts > num_images:
            size = f"{parts} x {batch_size}" if parts > 1 else f"{batch_size}"
            size += f" on each of {processes} processes" if processes > 1 else ""
            raise InputError(f"batch_size: {size} is more than the {num_images} images there are")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.start, self.stop, self.rank, self.processes, self.parts = start, stop, rank, processes, parts

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return self.num_images // (self.batch_size * self.processes * self.parts)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        current, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != current:
                gen = torch.Generator().manual_seed(random.Random(f"{self.seed}/{epoch}").getrandbits(63))
                current, order = epoch, torch.randperm(self.num_images, generator=gen)
            batches = range(place * self.parts, (place + 1) * self.parts)
            starts = [(batch * self.processes + self.rank) * self.batch_size for batch in batches]
            yield [(epoch, index) for first in starts for index in order[first : first + self.batch_size].tolist()]


def check_rank(rank: int, processes: int) -> None:
    """Raise :class:`InputError` unless a process can have this number among so many."""
    whole_given(0, rank=rank)
    if rank >= processes:
        raise InputError(f"rank: expected less than processes ({processes}), got {rank}")
