"""The sampler: slots that walk a tape, and that begin the next sample as soon as their own has ended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dqcore.models.sampling.replay import GraphedWork, Watched
from dqcore.models.sampling.settings import Sampling
from dqcore.models.sampling.steps import Steps
from dqcore.models.sampling.walk import Plan, TapeWalk
from dqcore.models.tape import Tape

__all__ = ["Sampler"]


class Sampler:
    """Draws ``count`` samples, at most ``S`` at once.

    It alternates between two pieces of work: :meth:`step` draws one token of every slot, and every few steps
    :meth:`turn` stores the samples that are complete and begins others in their slots. All tensors that either of them
    changes keep their addresses, and neither waits for a value of the device, so that a CUDA graph can hold each
    (:class:`dqcore.models.sampling.replay.GraphedWork`).

    What it draws is specified by :mod:`dqcore.models.sampling.naive`.

    Args:
        tape: The prior's tape.
        steps: The prior, with ``copies * S`` rows: all slots of the first copy, then all of the second.
        num_slots: ``S``.
        sampling: How to draw.
        plan: Called with indices of samples ``(n,)``, counted from 0; returns their :class:`Plan`.
        count: Number of samples.

    Attributes:
        slot_steps: Number of tokens that slots have read so far, those of idle slots included.
        results: ``(count + 1, L)`` int32: contents at the entries that each sample took, -1 elsewhere. The last row
            takes what slots without a sample write.
    """

    def __init__(
        self,
        tape: Tape,
        steps: Steps,
        num_slots: int,
        sampling: Sampling,
        plan: Callable[[Tensor], Plan],
        count: int,
    ) -> None:
        self.tape, self.steps, self.sampling, self.plan = tape, steps, sampling, plan
        self.draw_content, self.draw_position = sampling.contents, sampling.positions
        self.count, self.num_slots = count, num_slots
        device = tape.grains.device
        self.steps_a_turn = 8 if device.type == "cuda" else 2
        self.walk = TapeWalk(tape, num_slots, sampling.copies)
        self.samples = torch.full((num_slots,), count, device=device)  # the sample in each slot, ``count`` for none
        self.begun, self.finished, self.useful = torch.zeros(3, dtype=torch.int64, device=device).unbind()
        self.results = torch.full((count + 1, len(tape)), -1, dtype=torch.int32, device=device)
        self.slot_steps = 0

    @property
    def useful_steps(self) -> int:
        """How many of the ``slot_steps`` were not idle: tokens that finished samples read before their last code."""
        return int(self.useful)

    def run(self, progress: Callable[[int, int], object] | None = None) -> Tensor:
        """Draw all samples.

        Args:
            progress: Called with the number of finished samples and the number of all.

        Returns:
            ``(count, L)`` int32: contents at the entries that each sample took, -1 elsewhere.
        """
        step, turn = (GraphedWork(run, self.steps.capturable) for run in (self.step, self.turn))
        finished = Watched(self.finished)
        known = 0
        with torch.inference_mode(), torch.cuda.device_of(self.results):  # graphs are captured on the current device
            turn()
            while known < self.count:
                for _ in range(self.steps_a_turn):
                    step()
                self.slot_steps += self.steps_a_turn * self.num_slots
                if self.begun.device.type != "cpu" or bool(self._due().any()):
                    turn()
                before, known = known, finished.read()
                if progress is not None and known > before:
                    progress(known, self.count)
        return self.results[:-1]

    def step(self) -> None:
        """One token of each slot: read it, draw the next position, then the code that stands there."""
        walk, steps, guidance = self.walk, self.steps, self.sampling.guidance
        walk.take_entry(steps.positions(walk.contents, walk.rows, walk.grains), self.draw_position, guidance)
        walk.take_content(steps.codes(walk.rows), self.draw_content, guidance, steps.lengths, steps.active)

    def turn(self) -> None:
        """Store the samples that are complete, and begin others in their slots while there are any."""
        done = self._due()
        self.results.index_copy_(0, torch.where(done, self.samples, self.count), self.walk.taken.int())
        had_sample = done & (self.samples < self.count)
        self.finished += had_sample.sum()
        self.useful += torch.where(had_sample, self.walk.lengths(), 0).sum()
        next_samples = (self.begun + done.cumsum(0) - 1).clamp_max(self.count)  # the n-th free slot gets the n-th
        torch.where(done, next_samples, self.samples, out=self.samples)
        fresh = done & (next_samples < self.count)
        self.begun += fresh.sum()
        self.walk.load(fresh, self.plan(self.samples.clamp_max(self.count - 1)))
        self.steps.restart(fresh.repeat(self.sampling.copies))
        self.walk.under_way(self.steps.active)

    def _due(self) -> Tensor:
        """``(S,)`` bool: slots whose sample is complete, and at the beginning those that have no sample yet."""
        return self.walk.complete() & ((self.samples < self.count) | (self.begun < self.count))
