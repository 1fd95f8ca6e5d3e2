"""Sampling: slots that are filled with new samples as soon as old ones end, over any prior that walks a tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dqcore.models.draw import Draw, uniforms
from dqcore.models.tape import Tape
from dqcore.models.walk import Plan, Walk

__all__ = ["Sampler", "Sampling", "Steps"]


class Steps(Protocol):
    """A model in the midst of sampling: one token of each slot at a time."""

    def positions(self, contents: Tensor, rows: Tensor, grains: Tensor) -> Tensor | None:
        """Read the tokens ``(R,)`` of all rows; logits of the next columns ``(R, columns)``, None where it is known."""
        ...

    def codes(self, rows: Tensor) -> Tensor:
        """Logits ``(R, K)`` of the codes at the next tokens, whose rows ``(R,)`` are known by now."""
        ...

    def restart(self, rows: Tensor) -> None:
        """Forget the past of these rows, ``(n,)`` int64; their next token is a sample's first."""
        ...

    def rest(self, rows: Tensor) -> None:
        """Leave these rows out from here on."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        contents: How codes are drawn.
        positions: How positions are drawn.
        guidance: ``s`` in ``without class + s (with class - without class)``; 1 for none.
        seed: With a sample's index, decides its draws.
        check_every: Steps after which finished slots are filled again; on a GPU the host waits for it.
    """

    contents: Draw = field(default_factory=Draw)
    positions: Draw = field(default_factory=Draw)
    guidance: float = 1.0
    seed: int = 0
    check_every: int = 4

    @property
    def copies(self) -> int:
        """How often the model runs for a sample."""
        return 1 if self.guidance == 1.0 else 2


class Sampler:
    """Draws samples ``first .. first + count - 1``, at most ``S`` at once.

    Args:
        tape: The prior's tape.
        steps: The prior, for ``copies * S`` rows: all slots of the first copy, then all of the second.
        num_slots: ``S``.
        sampling: How.
        plan: Called with sample indices ``(n,)``, counted from 0; their :class:`Plan`.
        count: Number of samples.
        first: Index of the first.

    Attributes:
        slot_steps: Steps of slots so far, idle ones included.
        useful_steps: Those of them that read a token of a sample whose codes were not yet complete.
    """

    def __init__(
        self,
        tape: Tape,
        steps: Steps,
        num_slots: int,
        sampling: Sampling,
        plan: Callable[[Tensor], Plan],
        count: int,
        first: int = 0,
    ) -> None:
        self.tape, self.steps, self.sampling, self.plan = tape, steps, sampling, plan
        self.count, self.first, self.num_slots = count, first, num_slots
        self.walk = Walk(tape, num_slots, sampling.copies)
        device = tape.grains.device
        self.samples = torch.full((num_slots,), -1, device=device)  # the sample in each slot, -1 for none
        self.uniform = torch.zeros(num_slots, tape.max_tokens + sampling.check_every, 2, dtype=torch.int64)
        self.uniform = self.uniform.to(device)
        self.times = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.active = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.useful = torch.zeros((), dtype=torch.int64, device=device)
        self.slot_steps = 0

    @property
    def useful_steps(self) -> int:
        """See the class."""
        return int(self.useful)

    @torch.no_grad()
    def run(self, progress: Callable[[int, int], object] | None = None) -> Tensor:
        """Walk all samples to their end.

        Args:
            progress: Called with the numbers of finished samples and of all.

        Returns:
            ``(count, L)`` int32: contents at the entries that each sample took, -1 elsewhere.
        """
        results = torch.full((self.count, len(self.tape)), -1, dtype=torch.int32, device=self.samples.device)
        with torch.inference_mode():  # ops take a shorter way; the results are ordinary tensors
            self._run(results, progress)
        return results

    def _run(self, results: Tensor, progress: Callable[[int, int], object] | None) -> None:
        begun = self._refill(torch.arange(self.num_slots), 0)
        finished = 0
        while finished < self.count:
            for _ in range(self.sampling.check_every):
                self.step()
            slots = ((self.samples >= 0) & self.walk.complete()).nonzero()[:, 0]
            if len(slots):
                results[self.samples[slots]] = self.walk.codes(slots).int()
                self.useful += self.walk.taken(slots).sum()
                finished += len(slots)
                begun = self._refill(slots, begun)
                if progress is not None:
                    progress(finished, self.count)

    def step(self) -> None:
        """One token of each slot: read it, draw the next position, then the code that stands there."""
        walk, sampling = self.walk, self.sampling
        numbers = self.uniform.gather(1, self.times[:, None, None].expand(-1, 1, 2))[:, 0]
        flat = walk.rows.transpose(0, 1).flatten()
        contents = walk.contents.transpose(0, 1).flatten()
        grains = self.tape.grains.index_select(0, walk.entries)
        logits = self.steps.positions(contents, flat, grains.repeat(sampling.copies))
        blocked = walk.blocked()
        if logits is None:
            entries = blocked.to(torch.uint8).argmin(1)
        else:
            scores = self._guide(logits).index_select(1, self.tape.columns)
            entries = sampling.positions(scores.masked_fill(blocked, -torch.inf), numbers[:, 0])
        walk.go(entries)
        logits = self._guide(self.steps.codes(walk.rows.transpose(0, 1).flatten()))
        walk.fill(sampling.contents(logits, numbers[:, 1]))
        self.times += self.active
        self.slot_steps += self.num_slots

    def _guide(self, logits: Tensor) -> Tensor:
        if self.sampling.copies == 1:
            return logits
        with_class, without = logits.float().chunk(2)
        return torch.lerp(without, with_class, self.sampling.guidance)

    def _refill(self, slots: Tensor, begun: int) -> int:
        """Put the next samples into free slots; the slots left over rest."""
        device = self.samples.device
        fresh = min(len(slots), self.count - begun)
        slots = slots.to(device)
        rows = slots + self.num_slots * torch.arange(self.sampling.copies, device=device)[:, None]
        if fresh < len(slots):
            self.samples[slots[fresh:]] = -1
            self.steps.rest(rows[:, fresh:].flatten())
        if fresh:
            samples, slots = torch.arange(begun, begun + fresh, device=device), slots[:fresh]
            self.walk.load(slots, self.plan(samples))
            self.samples[slots] = samples
            numbers = uniforms(self.sampling.seed, samples + self.first, 2 * self.tape.max_tokens)
            self.uniform[slots, : self.tape.max_tokens] = numbers.unflatten(1, (-1, 2))
            self.times[slots] = 0
            self.steps.restart(rows[:, :fresh].flatten())
        self.active.copy_(self.samples >= 0)
        return begun + fresh
