"""Walking the tape: the state of many samples at once, each at a place of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.models.tape import BANNED, MANDATORY, Tape

__all__ = ["Plan", "Walk"]


class Plan:
    """What is decided before a sample is drawn: its label, the codes given for some regions, parts that are closed.

    Args:
        tape: The tape.
        labels: ``(n, copies)`` int64; a sample runs once for each copy (guidance: with its class, and without).
        given: ``(n, L)`` int64: codes given, -1 elsewhere; None for none.
        closed: Granularities that have no codes but the given ones.
        stop: Granularity after which a sample ends, in the order of the tape; None for the last.

    Attributes:
        status: ``(n, L)`` int64.
        contents: ``(n, copies, L)`` int64: what must be taken where, -1 where it is drawn.
        rows: ``(n, copies, L)`` int64: rows of the position embedding.
        last: Entry that ends a sample.
    """

    def __init__(
        self, tape: Tape, labels: Tensor, given: Tensor | None = None, closed: int = 0, stop: int | None = None
    ) -> None:
        shift = tape.starts * labels[:, :, None]
        special = tape.positions < 0
        self.contents = torch.where(special, tape.contents + shift, -1)
        self.rows = tape.rows + shift
        self.status = tape.status.repeat(len(labels), 1)
        if closed:
            self.status[:, (tape.grains < closed) & ~special] = BANNED
        if given is not None:
            sample, entry = (given >= 0).nonzero(as_tuple=True)
            places, statuses = tape.rules[entry].unbind(-1)
            self.status[sample[:, None], places] = statuses
            self.contents = torch.where(given[:, None] >= 0, given[:, None], self.contents)
        if stop is not None:
            self.status[:, (tape.grains > stop) & ~special] = BANNED
        self.status[:, 0] = BANNED  # the first start is where a walk begins

    def __len__(self) -> int:
        return len(self.status)


class Walk:
    """Slots that walk the tape; every method works on all slots at once and none waits for the device.

    A slot that has reached the end of the tape stays there until it is loaded again.

    Args:
        tape: The tape; its device is the walk's.
        num_slots: ``S``.
        copies: How often the model runs for a sample.
    """

    def __init__(self, tape: Tape, num_slots: int, copies: int = 1) -> None:
        self.tape = tape
        device, length = tape.grains.device, len(tape)
        self.status = torch.zeros(num_slots, length, dtype=torch.int64, device=device)
        self.status[:, -1] = MANDATORY
        self.tokens = torch.zeros(num_slots, copies, length, 2, dtype=torch.int64, device=device)
        self.entries = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.contents = torch.zeros(num_slots, copies, 1, dtype=torch.int64, device=device)
        self._found = torch.zeros(num_slots, copies, 1, 2, dtype=torch.int64, device=device)
        self._places = torch.arange(length, device=device)

    @property
    def rows(self) -> Tensor:
        """Rows of the position embedding at the present entries, ``(S, copies, 1)``."""
        return self._found[..., 1]

    def load(self, slots: Tensor, plan: Plan) -> None:
        """Put new samples into ``slots``, at the first start."""
        self.status[slots] = plan.status
        self.tokens[slots] = torch.stack([plan.contents, plan.rows], -1)
        self.entries[slots] = 0
        self.contents[slots] = plan.contents[:, :, :1]
        self._found[slots] = self.tokens[slots, :, :1]

    def blocked(self) -> Tensor:
        """``(S, L)`` bool: all but the entries that may come next.

        They are those not banned, up to and including the first mandatory one; entries passed are banned by now. At
        the end of the tape the last entry stays open.
        """
        return self.status <= (self.status >> 1).cumsum(1)

    def go(self, entries: Tensor) -> None:
        """Take the entries ``(S,)``: ban what was passed and what they exclude, and look up their rows."""
        self.entries.copy_(entries)
        places, statuses = self.tape.rules.index_select(0, entries).unbind(-1)
        self.status.scatter_(1, places, statuses)
        self.status[:, :-1].masked_fill_(self._places[:-1] <= entries[:, None], BANNED)
        torch.gather(self.tokens, 2, self._at(2), out=self._found)

    def fill(self, codes: Tensor) -> None:
        """Give the entries just taken a code ``(S,)``, where nothing else must stand there."""
        decided = self._found[..., 0]
        torch.where(decided < 0, codes[:, None, None], decided, out=self.contents)
        self.tokens[..., 0].scatter_(2, self._at(1)[..., 0], self.contents)

    def codes(self, slots: Tensor) -> Tensor:
        """``(n, L)`` int64: the contents at entries taken so far, -1 elsewhere."""
        passed = self._places <= self.entries[slots, None]
        return torch.where(passed, self.tokens[slots, 0, :, 0], -1)

    def taken(self, slots: Tensor) -> Tensor:
        """``(n,)`` int64: tokens taken up to the last code."""
        found = self.codes(slots) >= 0
        last = torch.where(found & (self.tape.positions >= 0), self._places, 0).amax(1, keepdim=True)
        return (found & (self._places <= last)).sum(1) - 1

    def complete(self) -> Tensor:
        """``(S,)`` bool: slots that have no code left to take."""
        return ~((self.status > BANNED) & (self.tape.positions >= 0)).any(1)

    def _at(self, size: int) -> Tensor:
        copies = self.tokens.shape[1]
        return self.entries[:, None, None, None].expand(-1, copies, 1, size)
