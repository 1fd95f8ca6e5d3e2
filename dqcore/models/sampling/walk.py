"""Walking the tape: the state of many samples at once, each at a place of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.models.tape import BANNED, MANDATORY, Tape

__all__ = ["Plan", "Walk"]

#: Columns of a token: the least and the largest content that may stand there (the same where it is known), the row of
#: its position's embedding, its granularity, its entry, and the numbers that draw the code there and the position
#: after it.
LEAST, MOST, ROW, GRAIN, ENTRY, NUMBERS = range(6)
WIDTH = NUMBERS + 2
#: More than any content.
ANY = 1 << 62


class Plan:
    """What is decided before a sample is drawn: its label and its luck, the codes given, parts that are closed.

    Args:
        tape: The tape.
        labels: ``(copies, n)`` int64; a sample runs once for each copy (guidance: with its class, and without).
        numbers: Of :func:`dqcore.models.sampling.draw.uniforms`, ``(n, 2 L)`` int64: two for each entry.
        given: ``(n, L)`` int64: codes given, -1 elsewhere; None for none.
        closed: Granularities that have no codes but the given ones.
        stop: Granularity after which a sample ends, in the order of the tape; None for the last.

    Attributes:
        status: ``(n, L)`` int64.
        tokens: ``(copies, n, L, 7)`` int64, see the columns above.
    """

    def __init__(
        self,
        tape: Tape,
        labels: Tensor,
        numbers: Tensor,
        given: Tensor | None = None,
        closed: int = 0,
        stop: int | None = None,
    ) -> None:
        shift = tape.starts * labels[:, :, None]
        special = tape.positions < 0
        least = torch.where(special, (tape.contents + shift).clamp_min(0), 0)
        most = torch.where(special, least, ANY)
        self.status = tape.status.repeat(labels.shape[1], 1)
        if closed:
            self.status.masked_fill_((tape.grains < closed) & ~special, BANNED)
        if given is not None:
            known = given >= 0
            covered = known[:, tape.rules[..., 0]].any(-1)  # a code of the entry's region is given
            self.status = torch.where(covered, known * MANDATORY, self.status)
            least, most = (torch.where(known, given, bound) for bound in (least, most))
        if stop is not None:
            self.status.masked_fill_((tape.grains > stop) & ~special, BANNED)
        self.status[:, 0] = BANNED  # the first start is where a walk begins
        entries = torch.arange(len(tape), device=labels.device).expand_as(least)
        fields = [least, most, tape.rows + shift, tape.grains.expand_as(least), entries]
        pairs = numbers.view(1, -1, len(tape), 2).expand(len(labels), -1, -1, -1)
        self.tokens = torch.cat([torch.stack(fields, -1), pairs], -1)


class Walk:
    """Slots that walk the tape: every method works on all slots at once, in the same memory, and none waits for them.

    A slot that has reached the end of the tape stays there until it is loaded again; at first all are there.

    Args:
        tape: The tape; its device is the walk's.
        num_slots: ``S``.
        copies: How often the model runs for a sample.

    Attributes:
        taken: ``(S, L)`` int64: the contents at entries taken so far, -1 elsewhere.
    """

    def __init__(self, tape: Tape, num_slots: int, copies: int = 1) -> None:
        self.tape, self.copies = tape, copies
        device, length = tape.grains.device, len(tape)
        self.status = torch.zeros(num_slots, length, dtype=torch.int64, device=device)
        self.status[:, -1] = MANDATORY
        self.tokens = torch.zeros(copies, num_slots, length, WIDTH, dtype=torch.int64, device=device)
        self.tokens[..., ENTRY] = length - 1
        self.taken = torch.full((num_slots, length), -1, device=device)
        self._here = self.tokens[:, :, :1].clone()
        self._places = torch.arange(length, device=device)

    @property
    def entries(self) -> Tensor:
        """Where each slot stands, ``(S,)``."""
        return self._here[0, :, 0, ENTRY]

    @property
    def contents(self) -> Tensor:
        """Contents at the present entries, ``(copies * S,)``."""
        return self._field(LEAST)

    @property
    def rows(self) -> Tensor:
        """Rows of the position embedding there, ``(copies * S,)``."""
        return self._field(ROW)

    @property
    def grains(self) -> Tensor:
        """Granularities there, ``(copies * S,)``."""
        return self._field(GRAIN)

    @property
    def numbers(self) -> Tensor:
        """The numbers that draw the code at the present entries and the position after them, ``(S, 2)``."""
        return self._here[0, :, 0, NUMBERS:]

    def load(self, fresh: Tensor, plan: Plan) -> None:
        """Put new samples at the first start, in those slots that are ``fresh``, ``(S,)`` bool; the plan has all."""
        torch.where(fresh[:, None], plan.status, self.status, out=self.status)
        torch.where(fresh[:, None, None], plan.tokens, self.tokens, out=self.tokens)
        torch.where(fresh[:, None, None], plan.tokens[:, :, :1], self._here, out=self._here)
        self.taken.masked_fill_(fresh[:, None], -1)

    def blocked(self) -> Tensor:
        """``(S, L)`` bool: all but the entries that may come next.

        They are those not banned, up to and including the first mandatory one; entries passed are banned by now. At
        the end of the tape the last entry stays open.
        """
        return self.status <= (self.status >> 1).cumsum(1)

    def under_way(self, out: Tensor) -> None:
        """Write to ``out (copies * S,)`` bool which slots have not reached the end of the tape."""
        torch.lt(self._here[:, :, 0, ENTRY], len(self.tape) - 1, out=out.view(self.copies, -1))

    def go(self, entries: Tensor) -> None:
        """Take the entries ``(S,)``: ban what was passed and what they exclude, and look up what stands there."""
        places, statuses = self.tape.rules.index_select(0, entries).unbind(-1)
        self.status.scatter_(1, places, statuses)
        self.status[:, :-1].masked_fill_(self._places[:-1] <= entries[:, None], BANNED)
        where = entries[:, None, None].expand(self.copies, -1, 1, WIDTH)
        torch.gather(self.tokens, 2, where, out=self._here)

    def fill(self, codes: Tensor) -> None:
        """Give the entries just taken a code ``(S,)``, where nothing else must stand there."""
        least, most = self._here[..., LEAST], self._here[..., MOST]
        torch.clamp(codes[:, None], least, most, out=least)
        self.taken.scatter_(1, self.entries[:, None], least[0])

    def complete(self) -> Tensor:
        """``(S,)`` bool: slots that have no code left to take."""
        return ~((self.status > BANNED) & (self.tape.positions >= 0)).any(1)

    def lengths(self) -> Tensor:
        """``(S,)`` int64: tokens taken up to the last code."""
        found = self.taken >= 0
        last = torch.where(found & (self.tape.positions >= 0), self._places, 0).amax(1, keepdim=True)
        return (found & (self._places <= last)).sum(1)

    def _field(self, column: int) -> Tensor:
        return self._here[..., column].flatten()
