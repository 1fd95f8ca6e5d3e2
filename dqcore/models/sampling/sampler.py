"""Sampling: slots that are filled with new samples as soon as old ones end, over any prior that walks a tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dqcore.models.sampling.draw import Draw
from dqcore.models.sampling.replay import Replay, Watched
from dqcore.models.sampling.walk import Plan, Walk
from dqcore.models.tape import Tape

__all__ = ["Sampler", "Sampling", "Steps"]


class Steps(Protocol):
    """A model in the midst of sampling: one token of each slot at a time.

    Attributes:
        active: Rows that take part, ``(R,)`` bool; written to by who samples.
        capturable: Whether a CUDA graph can hold a step.
    """

    active: Tensor
    capturable: bool

    def positions(self, contents: Tensor, rows: Tensor, grains: Tensor) -> Tensor | None:
        """Read the tokens ``(R,)`` of all rows; logits of the next columns ``(R, columns)``, None where it is known."""
        ...

    def codes(self, rows: Tensor) -> Tensor:
        """Logits ``(R, K)`` of the codes at the next tokens, whose rows ``(R,)`` are known by now."""
        ...

    def restart(self, fresh: Tensor) -> None:
        """Forget the past of the rows that are ``fresh``, ``(R,)`` bool; their next token is a sample's first."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        contents: How codes are drawn.
        positions: How positions are drawn.
        guidance: ``s`` in ``without class + s (with class - without class)``; 1 for none.
        check_every: Steps after which finished slots are filled again.
    """

    contents: Draw = field(default_factory=Draw)
    positions: Draw = field(default_factory=Draw)
    guidance: float = 1.0
    check_every: int = 2

    @property
    def copies(self) -> int:
        """How often the model runs for a sample."""
        return 1 if self.guidance == 1.0 else 2


class Sampler:
    """Draws ``count`` samples, at most ``S`` at once.

    All that a step or a turn changes lies in the same memory from first to last, and neither asks for a value, so that
    a CUDA graph can hold each (:class:`dqcore.models.sampling.replay.Replay`).

    Args:
        tape: The prior's tape.
        steps: The prior, for ``copies * S`` rows: all slots of the first copy, then all of the second.
        num_slots: ``S``.
        sampling: How.
        plan: Called with sample indices ``(n,)``, counted from 0; their :class:`Plan`.
        count: Number of samples.

    Attributes:
        slot_steps: Steps of slots so far, idle ones included.
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
        self.count, self.num_slots = count, num_slots
        device = tape.grains.device
        self.walk = Walk(tape, num_slots, sampling.copies)
        self.samples = torch.full((num_slots,), count, device=device)  # the sample in each slot, ``count`` for none
        self.begun, self.finished, self.useful = torch.zeros(3, dtype=torch.int64, device=device).unbind()
        #: Contents of the samples at the entries they took, -1 elsewhere; what slots have no sample for goes last.
        self.results = torch.full((count + 1, len(tape)), -1, dtype=torch.int32, device=device)
        self.slot_steps = 0

    @property
    def useful_steps(self) -> int:
        """Those of the steps of slots that read a token of a sample whose codes were not yet complete."""
        return int(self.useful)

    def run(self, progress: Callable[[int, int], object] | None = None) -> Tensor:
        """Walk all samples to their end.

        Args:
            progress: Called with the numbers of finished samples and of all.

        Returns:
            ``(count, L)`` int32: contents at the entries that each sample took, -1 elsewhere.
        """
        step, turn = (Replay(run, self.steps.capturable) for run in (self.step, self.turn))
        finished = Watched(self.finished)
        known = 0
        with torch.inference_mode(), torch.cuda.device_of(self.results):  # graphs are captured on the current device
            turn()
            while known < self.count:
                for _ in range(self.sampling.check_every):
                    step()
                self.slot_steps += self.sampling.check_every * self.num_slots
                if self.begun.device.type != "cpu" or bool(self._due().any()):
                    turn()
                before, known = known, finished.read()
                if progress is not None and known > before:
                    progress(known, self.count)
        return self.results[:-1]

    def step(self) -> None:
        """One token of each slot: read it, draw the next position, then the code that stands there."""
        walk, sampling = self.walk, self.sampling
        walk.under_way(self.steps.active)
        logits = self.steps.positions(walk.contents, walk.rows, walk.grains)
        blocked = walk.blocked()
        if logits is None:
            entries = blocked.to(torch.uint8).argmin(1)
        else:
            scores = self._guide(logits).index_select(1, self.tape.columns)
            entries = sampling.positions(scores.masked_fill_(blocked, -torch.inf), walk.numbers[:, 1])
        walk.go(entries)
        logits = self._guide(self.steps.codes(walk.rows))
        walk.fill(sampling.contents(logits, walk.numbers[:, 0]))

    def turn(self) -> None:
        """Keep the samples that are complete, and begin others in their slots while there are any."""
        done = self._due()
        self.results.index_copy_(0, torch.where(done, self.samples, self.count), self.walk.taken.int())
        held = done & (self.samples < self.count)
        self.finished += held.sum()
        self.useful += torch.where(held, self.walk.lengths(), 0).sum()
        following = (self.begun + done.cumsum(0) - 1).clamp_max(self.count)
        torch.where(done, following, self.samples, out=self.samples)
        fresh = done & (following < self.count)
        self.begun += fresh.sum()
        self.walk.load(fresh, self.plan(self.samples.clamp_max(self.count - 1)))
        self.steps.restart(fresh.repeat(self.sampling.copies))

    def _due(self) -> Tensor:
        """``(S,)`` bool: slots whose sample is complete, and at first those that have none yet."""
        return self.walk.complete() & ((self.samples < self.count) | (self.begun < self.count))

    def _guide(self, logits: Tensor) -> Tensor:
        if self.sampling.copies == 1:
            return logits
        with_class, without = logits.float().chunk(2)
        return torch.lerp(without, with_class, self.sampling.guidance)
