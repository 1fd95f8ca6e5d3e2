"""Verbs that keep what they have done when a signal comes, and say how to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dqcore.cli.given import given_line
from dqcore.training.stop import StoppedWorkError, StopSignals

__all__ = ["stoppable"]


@contextmanager
def stoppable(verb: str, unit: str, remark: str = "the same line goes on") -> Iterator[Callable[[int, int], None]]:
    """While this is open, SIGINT and SIGTERM let the present unit be finished.

    Args:
        verb: The verb.
        unit: What is finished, such as a photo.
        remark: What the command does when it is given again.

    Yields:
        A function to call after each unit with the number of those done and of all; it raises if there was a signal.
    """
    with StopSignals(unit) as signals:

        def check(done: int, total: int) -> None:
            if signals.received:
                message = f"stopped after {done} of {total}; {remark}: {given_line(verb)}"
                raise StoppedWorkError(message, signals.received)

        yield check
