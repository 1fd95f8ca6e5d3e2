"""Walking the tape: where each of many samples stands, and which entries may come next in each."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.kernels.tape import ENTRY, GRAIN, LEAST, ROW, WIDTH
from dqcore.models.sampling.draw import Draw
from dqcore.models.tape import BANNED, MANDATORY, Tape
from dqcore.ops.take_content import take_content
from dqcore.ops.take_entry import take_entry

__all__ = ["Plan", "TapeWalk"]

#: More than any content.
ANY = 1 << 62


class Plan:
    """What is fixed before ``n`` samples are drawn: labels, random numbers, and which codes are given or banned.

    Args:
        tape: The tape.
        labels: ``(copies, n)`` int64. With guidance there are two copies of a sample: with its class, and without.
        numbers: Random numbers of :func:`dqcore.models.sampling.draw.uniforms`, ``(n, 2 L)`` int64: for each entry
            the one that draws its code, and the one that draws the position after it.
        given: ``(n, L)`` int64: codes that are given, -1 elsewhere; None if no code is given.
        closed: Granularities below this one have no codes but the given ones.
        stop: Samples have no codes of finer granularities than this one; None for no limit.

    Attributes:
        status: Status of each entry at the start, ``(n, L)`` int64.
        tokens: ``(copies, n, L, 7)`` int64; the columns are those of ``kernels/tape.py``.
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
        # A content is clamped between its bounds: special and given contents have equal ones, other codes wide ones.
        least = torch.where(special, (tape.contents + shift).clamp_min(0), 0)
        most = torch.where(special, least, ANY)
        self.status = tape.status.repeat(labels.shape[1], 1)
        if closed:
            self.status.masked_fill_((tape.grains < closed) & ~special, BANNED)
        if given is not None:
            known = given >= 0
            covered = known[:, tape.rules[..., 0]].any(-1)  # some code of the entry's region is given
            self.status = torch.where(covered, known * MANDATORY, self.status)
            least, most = (torch.where(known, given, bound) for bound in (least, most))
        if stop is not None:
            self.status.masked_fill_((tape.grains > stop) & ~special, BANNED)
        self.status[:, 0] = BANNED  # the first start token is taken already
        entries = torch.arange(len(tape), device=labels.device).expand_as(least)
        fields = [least, most, tape.rows + shift, tape.grains.expand_as(least), entries]
        pairs = numbers.view(1, -1, len(tape), 2).expand(len(labels), -1, -1, -1)
        self.tokens = torch.cat([torch.stack(fields, -1), pairs], -1)


class TapeWalk:
    """``S`` slots that walk the tape.

    Every method works on all slots at once, keeps tensors at their addresses, and does not wait for the device. A slot
    that has reached the end of the tape stays there until it is loaded again; at first all slots are there.

    Args:
        tape: The tape; its device is the walk's.
        num_slots: ``S``.
        copies: How often the model runs for each sample.

    Attributes:
        status: Status of each entry, ``(S, L)`` int64.
        taken: Contents at the entries taken so far, -1 elsewhere, ``(S, L)`` int64.
        tokens: All tokens of the sample in each slot, ``(copies, S, L, 7)`` int64; see :class:`Plan`.
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
        self._all_entries = torch.arange(length, device=device)

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

    def load(self, fresh: Tensor, plan: Plan) -> None:
        """Begin new samples in the slots where ``fresh``, ``(S,)`` bool; the plan has a sample for every slot."""
        torch.where(fresh[:, None], plan.status, self.status, out=self.status)
        torch.where(fresh[:, None, None], plan.tokens, self.tokens, out=self.tokens)
        torch.where(fresh[:, None, None], plan.tokens[:, :, :1], self._here, out=self._here)
        self.taken.masked_fill_(fresh[:, None], -1)

    def under_way(self, out: Tensor) -> None:
        """Write into ``out``, ``(copies * S,)`` bool, which slots have not reached the end of the tape."""
        torch.lt(self._here[:, :, 0, ENTRY], len(self.tape) - 1, out=out.view(self.copies, -1))

    def take_entry(self, logits: Tensor | None, draw: Draw, guidance: float) -> None:
        """Take the next entry of each slot.

        Args:
            logits: Of the position after the present token, ``(copies * S, columns)``; None to take the first entry
                that may come next.
            draw: How entries are drawn from those that may come next.
            guidance: As :class:`dqcore.models.sampling.settings.Sampling` says.
        """
        columns, rules = self.tape.columns, self.tape.rules
        take_entry(self._here, self.status, self.tokens, columns, rules, logits, guidance, *draw.settings)

    def take_content(self, logits: Tensor, draw: Draw, guidance: float, lengths: Tensor, active: Tensor) -> None:
        """Give the entries just taken their contents, codes that are drawn or what is known to stand there.

        Args:
            logits: Of the codes, ``(copies * S, K)``.
            draw: How codes are drawn.
            guidance: As in :meth:`take_entry`.
            lengths: How many tokens were read, ``(copies * S,)`` int32; those of this step are added.
            active: Which rows read one, ``(copies * S,)`` bool; those that will read another are written.
        """
        take_content(self._here, self.taken, lengths, active, logits, guidance, *draw.settings)

    def complete(self) -> Tensor:
        """``(S,)`` bool: slots that have no more code to take."""
        return ~((self.status > BANNED) & (self.tape.positions >= 0)).any(1)

    def lengths(self) -> Tensor:
        """``(S,)`` int64: number of tokens taken, up to and including the last code."""
        found = self.taken >= 0
        last = torch.where(found & (self.tape.positions >= 0), self._all_entries, 0).amax(1, keepdim=True)
        return (found & (self._all_entries <= last)).sum(1)

    def _field(self, column: int) -> Tensor:
        """A column of the present tokens, ``(copies * S,)``."""
        return self._here[..., column].flatten()
