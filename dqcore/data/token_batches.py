"""Batches of images for a prior, by a budget of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from dqcore.data.steps import check_rank
from dqcore.errors import InputError, whole_given

__all__ = ["TokenBatches"]

#: Batches whose images are sorted by length together.
WINDOW = 32


class TokenBatches:
    """Batches of as many images as fit in a budget of tokens. Which images a step gets depends on (seed, step) alone.

    In each epoch the images are put in a new random order and cut into windows of about ``WINDOW`` batches. In a window
    images are sorted by length before they are cut into batches, so that those of one batch are of similar length; then
    all batches of the epoch are shuffled. No image is left out of the plan; where the batches cannot be shared equally
    between processes, the last ones of the epoch are not used.

    Args:
        lengths: Tokens of each image, ``(N,)`` int64, at least 1.
        budget: Tokens in a batch of one process. An image that is longer is a batch of its own.
        seed: Seed of the order.
        rank: Number of this process.
        processes: How many processes there are. Of every ``processes`` batches in a row, each takes one.

    Raises:
        InputError: A number is not whole or out of range, or there are fewer batches than processes.
    """

    def __init__(self, lengths: Tensor, budget: int, *, seed: int, rank: int = 0, processes: int = 1) -> None:
        whole_given(1, budget=budget, processes=processes)
        whole_given(seed=seed)
        check_rank(rank, processes)
        if lengths.dim() != 1 or lengths.is_floating_point() or not len(lengths) or int(lengths.min()) < 1:
            got = f"{lengths.dtype} {tuple(lengths.shape)}"
            raise InputError(f"lengths: expected (N,) whole numbers from 1 up, at least one, got {got}")
        self.lengths, self.budget, self.seed, self.rank, self.processes = lengths, int(budget), seed, rank, processes
        if self.steps(0) == 0:
            raise InputError(f"token_budget: {budget} tokens hold more than {processes} processes can share")

    def steps(self, epoch: int) -> int:
        """Steps in an epoch."""
        return len(self._plan(epoch)) // self.processes

    def total(self, epochs: float) -> int:
        """Steps in this number of epochs, which need not be whole."""
        whole = sum(self.steps(epoch) for epoch in range(int(epochs)))
        return whole + round((epochs - int(epochs)) * self.steps(int(epochs)))

    def run(self, start: int, stop: int) -> Iterator[Tensor]:
        """For each of the steps ``start .. stop - 1``, the numbers ``(n,)`` int64 of this process's images."""
        epoch, first = 0, 0
        while first < stop:
            batches = self._plan(epoch)
            steps = len(batches) // self.processes
            for step in range(max(start, first), min(stop, first + steps)):
                yield batches[(step - first) * self.processes + self.rank]
            epoch, first = epoch + 1, first + steps

    def _plan(self, epoch: int) -> list[Tensor]:
        """All batches of an epoch, those of every process, in the order of the steps."""
        rng = random.Random(f"{self.seed}/{epoch}")
        gen = torch.Generator().manual_seed(rng.getrandbits(63))
        order = torch.randperm(len(self.lengths), generator=gen)
        mean = float(self.lengths.double().mean())
        window = max(1, int(WINDOW * self.budget / mean))
        batches: list[Tensor] = []
        for part in order.split(window):
            part = part[self.lengths[part].argsort(stable=True)]
            batches += self._cut(part)
        rng.shuffle(batches)
        return batches

    def _cut(self, images: Tensor) -> list[Tensor]:
        """These images in batches, each filled up to the budget before the next one begins."""
        sizes, total = [0], 0
        for length in self.lengths[images].tolist():
            if total + length > self.budget and sizes[-1]:
                sizes.append(0)
                total = 0
            sizes[-1] += 1
            total += length
        return list(images.split(sizes))
