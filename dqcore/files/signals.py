"""A signal that comes twice: whoever ends a group of processes may reach one of them more than once.

A supervisor sends SIGTERM to every process of a job, and a process that starts others passes on what it got itself:
``timeout``, ``torchrun``, systemd and Slurm do one of these or both.
"""

from __future__ import annotations

import time

__all__ = ["TOGETHER", "FirstSignal"]

#: Signals within so many seconds of the first are one with it.
TOGETHER = 2.0


class FirstSignal:
    """Tells the first signal's echo from a second one, which somebody means."""

    def __init__(self) -> None:
        self._time: float | None = None

    def is_echo(self) -> bool:
        """Whether this signal, which just came, is one with the first; that is none."""
        now = time.monotonic()
        if self._time is None:
            self._time = now
            return False
        return now - self._time < TOGETHER
