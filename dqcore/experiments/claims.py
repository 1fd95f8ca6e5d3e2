"""One sentence for each claim: what the paper says, what was measured, and whether that holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dqcore.metrics.intervals import Interval

__all__ = ["SEEDS", "Claim", "Verdict", "judge", "judge_within", "together"]

Verdict = Literal["holds", "does not hold", "cannot be said at this scale"]

#: Seeds below which nothing is said.
SEEDS = 3


@dataclass(frozen=True)
class Claim:
    """A claim and its outcome.

    Attributes:
        claim: What the paper says, or the issue at hand.
        measured: What was found, with its interval.
        verdict: Whether it holds.
    """

    claim: str
    measured: str
    verdict: Verdict

    def sentence(self) -> str:
        """All three."""
        return f"{self.claim}: {self.measured}; {self.verdict}."

    def as_json(self) -> dict[str, str]:
        """The attributes by name."""
        return dataclasses.asdict(self)


def judge(found: Interval, above: float = 0.0) -> Verdict:
    """Whether a quantity is above a bound: it holds where the whole interval is, and not where none of it is."""
    if found.count < SEEDS:
        return "cannot be said at this scale"
    if found.low > above:
        return "holds"
    return "does not hold" if found.high <= above else "cannot be said at this scale"


def judge_within(found: Interval, low: float, high: float) -> Verdict:
    """Whether a quantity lies in a range, ends included: by the whole interval, as in :func:`judge`."""
    if found.count < SEEDS:
        return "cannot be said at this scale"
    if low <= found.low and found.high <= high:
        return "holds"
    return "does not hold" if found.high < low or found.low > high else "cannot be said at this scale"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim with several parts: it holds if all do, and not if one does not."""
    if verdicts and all(verdict == "holds" for verdict in verdicts):
        return "holds"
    return "does not hold" if "does not hold" in verdicts else "cannot be said at this scale"
