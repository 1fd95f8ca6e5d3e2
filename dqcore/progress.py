"""How far a long piece of work has come: a bar that moves on a terminal, plain lines where there is none.

Bars go to stderr and need rich, which is imported when the first bar is made. Lines go to the logger ``dqcore``, which
the command line shows on stdout (:func:`shown_log`); a program of your own gives it a handler, or does the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dqcore.printing import one_line, say

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = [
    "CountLines",
    "ask",
    "counted",
    "duration",
    "progress_bar",
    "shown_log",
    "time_left",
]

log = logging.getLogger(__name__)

#: Seconds between two lines in the first minutes; later lines are further apart.
LINE_SECONDS = 10.0


def progress_bar() -> Progress:
    """A bar for a task of known length, for use in a ``with``: removed at the end; elsewhere lines on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    what, left = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[left]}")
    columns = (what, BarColumn(), MofNCompleteColumn(), left)
    quiet, talks = not sys.stderr.isatty(), _talks()
    lines: dict[int, CountLines] = {}

    class Bar(Progress):
        def advance(self, task_id: Any, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self._say(task_id)

        def update(self, task_id: Any, **changes: Any) -> None:
            super().update(task_id, **changes)
            self._say(task_id)

        def _say(self, task_id: Any) -> None:
            if quiet and talks:
                task = self._tasks[task_id]
                if task_id not in lines:
                    lines[task_id] = CountLines(task.description, task.total, task.completed, _to_stderr)
                lines[task_id].move(task.completed)

        def get_renderable(self) -> Any:
            for task in self.tasks:
                before = task.fields.setdefault("before", task.completed)  # done by an earlier call
                total = None if task.total is None else task.total - before
                task.fields["left"] = time_left(task.completed - before, total, task.elapsed)
            return super().get_renderable()

    return Bar(*columns, console=Console(stderr=True), disable=quiet or not talks, transient=True)


def time_left(completed: float, total: float | None, elapsed: float | None) -> str:
    """How long the rest takes at the mean speed so far, from the first item on: ``"about 4 min 10 s left"``."""
    if not completed or not total or not elapsed or completed >= total:
        return ""
    return f"about {duration(elapsed / completed * (total - completed))} left"


class CountLines:
    """Lines at even times of work whose items are counted: how many are done, and what is left.

    Args:
        what: What is done, such as ``"encoding images"``.
        total: All items; None says nothing.
        before: Items that were done before.
        say: Takes a line.
    """

    def __init__(
        self, what: str, total: float | None, before: float = 0, say: Callable[[str], object] = log.info
    ) -> None:
        self._what, self._total, self._before, self._say = what, total, before, say
        self._start = time.monotonic()
        self._next = LINE_SECONDS

    def move(self, done: float) -> None:
        """Show how many are done, if it is time."""
        now = time.monotonic() - self._start
        if self._total is None or now < self._next or done >= self._total:
            return
        self._next = now + max(LINE_SECONDS, now / 20)
        left = time_left(done - self._before, self._total - self._before, now)
        self._say(f"{self._what}: {done:.0f} of {self._total:.0f}, {left}")


def _to_stderr(line: str) -> None:
    say(line, error=True)


def ask(question: str) -> bool:
    """Ask a question at the terminal; without one, the answer is yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{one_line(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def counted(number: int, thing: str) -> str:
    """A number of things in words: ``"1 photo"``, ``"1,200 photos"``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """A length of time in words: ``"35 s"``, ``"4 min 10 s"``, ``"3 h 20 min"``, ``"12 days"``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min" + (f" {seconds % 60} s" if seconds % 60 else "")
    if seconds < 2 * 86_400:
        return f"{seconds // 3600} h" + (f" {seconds % 3600 // 60} min" if seconds % 3600 >= 60 else "")
    return f"{seconds / 86_400:.0f} days"


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """Print what dqcore logs, from INFO up, to stdout: for programs that talk to somebody."""
    if not _talks():
        yield
        return
    logger = logging.getLogger("dqcore")
    handler = _Printing()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def _talks() -> bool:
    """Whether this process shows anything: of several processes the first."""
    return os.environ.get("RANK", "0") == "0"


class _Printing(logging.Handler):
    """Prints to whatever stdout is at the moment: a moving bar replaces it, so that lines go above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        say(f"{mark}{record.getMessage()}")
