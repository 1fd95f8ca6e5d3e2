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
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["EvenLines", "TrainingBar", "ask", "duration", "progress_bar", "shown_log"]

log = logging.getLogger(__name__)

#: Seconds between two lines in the first minutes; later lines are further apart.
LINE_SECONDS = 10.0


def progress_bar() -> Progress:
    """A bar for a task of known length, for use in a ``with``: shown on a terminal only, removed at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty() or not _talks()
    return Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True)


class TrainingBar:
    """The bar of a training run: the latest loss stands beside it, and each validation leaves a line above it.

    Args:
        completed: Steps done before; of a timed run, seconds.
        total: Steps of the run; of a timed run, seconds.
        unit: ``"steps"`` or ``"seconds"``.
    """

    def __init__(self, completed: float, total: float, unit: str = "steps") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        done = "{task.completed:.0f}/{task.total:.0f} " + unit
        columns = (BarColumn(), TextColumn(done), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("train", total=total, note="")
        self._bar.update(self._task, completed=completed)
        self._bar.start()

    def move(self, completed: float) -> None:
        """Show how many steps are done, or how many seconds."""
        self._bar.update(self._task, completed=completed)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of a row of metrics."""
        if text := _validation_numbers(row):
            self._bar.console.print(f"step {row['step']}: {text}")
        elif "loss" in row:
            self._bar.update(self._task, note=_training_numbers(row))

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class EvenLines:
    """The lines of a training run where there is no terminal: at even times, and at each validation.

    Args:
        total: Steps of the run; None for a timed run.
    """

    def __init__(self, total: int | None) -> None:
        self._of = "" if total is None else f" of {total}"
        self._latest: Mapping[str, Any] = {}
        self._start = time.monotonic()
        self._next = 0.0

    def move(self, step: int, share: float) -> None:
        """Show the latest numbers, if it is time.

        Args:
            step: Steps done.
            share: Share of the run that is over.
        """
        now = time.monotonic() - self._start
        if now < self._next or not self._latest:
            return
        self._next = now + max(LINE_SECONDS, now / 20)
        log.info("step %5d%s, %2.0f %%: %s", step, self._of, 100 * min(1, share), _training_numbers(self._latest))

    def show(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of a row of metrics."""
        if text := _validation_numbers(row):
            log.info("step %5d%s: %s", row["step"], self._of, text)
        elif "loss" in row:
            self._latest = row


def ask(question: str) -> bool:
    """Ask a question at the terminal; without one, the answer is yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


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
        print(f"{mark}{record.getMessage()}", flush=True)


def _training_numbers(row: Mapping[str, Any]) -> str:
    fine = f"  fine {row['fine_ratio']:.2f}" if "fine_ratio" in row else ""
    return f"loss {row['loss']:.4f}{fine}  {_speed(row['images_per_second'])} images/s"


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _validation_numbers(row: Mapping[str, Any]) -> str:
    """The numbers of a validation, of a tokenizer or a prior, in words; empty for any other row."""
    if "val_psnr" in row:
        return f"held-out PSNR {row['val_psnr']:.2f} dB"
    if "val_bits_per_image" in row:
        loss = f"loss {row['val_loss']:.4f}, " if "val_loss" in row else ""
        return f"held-out {loss}{row['val_bits_per_image']:.0f} bits an image"
    return ""
