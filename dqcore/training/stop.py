"""Ending a run from outside: a signal lets the step finish, everything is saved, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from dqcore.files.signals import FirstSignal

__all__ = ["StopSignals", "StoppedError", "StoppedWorkError"]


class StoppedWorkError(KeyboardInterrupt):
    """Work was stopped by a signal; what was done so far was saved.

    A ``KeyboardInterrupt``, so that no ``except Exception`` goes on after it.

    Attributes:
        exit_code: What a program that was stopped this way returns: 128 and the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StoppedError(StoppedWorkError):
    """A run was stopped by a signal, or by an answer to a question. Its model and its checkpoint were saved.

    Attributes:
        folder: The run's folder.
        step: Steps done.
    """

    def __init__(self, folder: Path, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}; model and checkpoint are in {folder}", number)
        self.folder, self.step = folder, step


class StopSignals:
    """While this is open, the first SIGINT or SIGTERM is only noted; the second ends the program at once.

    One that comes right after the first is no second one, see :mod:`dqcore.files.signals`.

    In threads other than the main one, where Python allows no handlers, signals do what they did before.

    Args:
        unit: What is finished first, for the message.

    Attributes:
        received: Number of the signal; 0 for none.
    """

    def __init__(self, unit: str = "step") -> None:
        self.received, self._unit = 0, unit
        self._owner, self._first = os.getpid(), FirstSignal()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a loader process, forked while this was open: its owner stops it
            return
        if self._first.is_echo():
            return
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = int(number)
        if os.environ.get("WORLD_SIZE", "1") == "1":  # of several processes only the last line is worth reading
            print(f"finishing this {self._unit}, then saving; once more ends at once", file=sys.stderr, flush=True)
