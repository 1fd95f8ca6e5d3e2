"""Verbs that keep what they have done when a signal comes, and say how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dqcore.cli.given import given_line
from dqcore.training.stop import StoppedWorkError, StopSignals

__all__ = ["Stoppable", "stoppable"]


@dataclass(frozen=True)
class Stoppable:
    """Work that a signal may stop; called after each unit with the number of those done and of all.

    Attributes:
        signals: Knows whether a signal came.
        verb: The verb.
        remark: What the command does when it is given again.
    """

    signals: StopSignals
    verb: str
    remark: str

    def __call__(self, done: int, total: int) -> None:
        """Raise if there was a signal."""
        if self.signals.received:
            message = f"stopped after {done} of {total}; {self.remark}: {given_line(self.verb)}"
            raise StoppedWorkError(message, self.signals.received)


@contextmanager
def stoppable(verb: str, unit: str, remark: str = "the same line goes on") -> Iterator[Stoppable]:
    """While this is open, SIGINT and SIGTERM let the present unit be finished.

    Args:
        verb: The verb.
        unit: What is finished, such as a photo.
        remark: What the command does when it is given again.

    Yields:
        What to call after each unit.
    """
    with StopSignals(unit) as signals:
        yield Stoppable(signals, verb, remark)
