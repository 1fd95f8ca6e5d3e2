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

__all__ = [
    "CountLines",
    "EvenLines",
    "TrainingBar",
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
    """A bar for a task of known length, for use in a ``with``: shown on a terminal only, removed at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    hidden = not sys.stderr.isatty() or not _talks()

    class Bar(Progress):
        def get_renderable(self) -> Any:
            for task in self.tasks:
                before = task.fields.setdefault("before", task.completed)  # done by an earlier call
                total = None if task.total is None else task.total - before
                task.fields["left"] = time_left(task.completed - before, total, task.elapsed)
            return super().get_renderable()

    return Bar(*columns, console=Console(stderr=True), disable=hidden, transient=True)


def time_left(completed: float, total: float | None, elapsed: float | None) -> str:
    """How long the rest takes at the mean speed so far, from the first item on: ``"about 4 min 10 s left"``."""
    if not completed or not total or not elapsed or completed >= total:
        return ""
    return f"about {duration(elapsed / completed * (total - completed))} left"


class TrainingBar:
    """The bar of a training run: the latest loss stands beside it, and each validation leaves a line above it.

    Args:
        completed: Steps done before; of a timed run, seconds.
        total: Steps of the run; of a timed run, seconds.
        unit: ``"steps"`` or ``"seconds"``.
    """

    def __init__(self, completed: float, total: float, unit: str = "steps") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        done = "{task.completed:.0f}/{task.total:.0f} " + unit
        texts = (done, "{task.fields[left]}", "{task.fields[note]}")
        columns = (BarColumn(), *map(TextColumn, texts))
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("train", total=total, left="", note="")
        self._bar.update(self._task, completed=completed)
        self._before, self._start, self._total, self._timed = completed, time.monotonic(), total, unit == "seconds"
        self._completed = completed
        self._bar.start()

    def move(self, completed: float) -> None:
        """Show how many steps are done, or how many seconds."""
        done, total = completed - self._before, self._total - self._before
        left = time_left(done, total, done if self._timed else time.monotonic() - self._start)
        self._bar.update(self._task, completed=completed, left=left)
        self._completed = completed

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of a row of metrics."""
        if text := _validation_numbers(row):
            self._bar.console.print(f"step {row['step']}: {text}")
        elif "loss" in row:
            numbers = _training_numbers(row)
            if self._timed:
                numbers = f"step {row['step']}{_of_about(row['step'], self._completed / self._total)}  {numbers}"
            self._bar.update(self._task, note=numbers)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class EvenLines:
    """The lines of a training run where there is no terminal: at even times, and at each validation.

    Args:
        total: Steps of the run; None for a timed run.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._latest: Mapping[str, Any] = {}
        self._start = time.monotonic()
        self._next = 0.0
        self._first: tuple[float, float] | None = None

    def move(self, step: int, share: float) -> None:
        """Show the latest numbers, if it is time.

        Args:
            step: Steps done.
            share: Share of the run that is over.
        """
        now = time.monotonic() - self._start
        if self._first is None:  # a resumed run begins with a part of it done
            self._first = (now, share)
        if now < self._next or not self._latest:
            return
        self._next = now + max(LINE_SECONDS, now / 20)
        left = time_left(share - self._first[1], 1 - self._first[1], now - self._first[0])
        numbers = "  ".join(filter(None, (_training_numbers(self._latest), left)))
        of = _of_about(step, share) if self._total is None else f" of {self._total}"
        log.info("step %5d%s, %2.0f %%: %s", step, of, 100 * min(1, share), numbers)

    def show(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of a row of metrics."""
        if text := _validation_numbers(row):
            of = "" if self._total is None else f" of {self._total}"
            log.info("step %5d%s: %s", row["step"], of, text)
        elif "loss" in row:
            self._latest = row


class CountLines:
    """Lines at even times of work whose items are counted: how many are done, and what is left.

    Args:
        what: What is done, such as ``"encoding images"``.
        total: All items.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._start = time.monotonic()
        self._next = LINE_SECONDS

    def move(self, done: int) -> None:
        """Show how many are done, if it is time."""
        now = time.monotonic() - self._start
        if now < self._next or done >= self._total:
            return
        self._next = now + max(LINE_SECONDS, now / 20)
        log.info("%s: %d of %d, %s", self._what, done, self._total, time_left(done, self._total, now))


def ask(question: str) -> bool:
    """Ask a question at the terminal; without one, the answer is yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
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
        print(f"{mark}{record.getMessage()}", flush=True)


def _training_numbers(row: Mapping[str, Any]) -> str:
    fine = f"  fine {row['fine_ratio']:.2f}" if "fine_ratio" in row else ""
    return f"loss {row['loss']:.4f}{fine}  {_speed(row['images_per_second'])} images/s"


def _of_about(step: int, share: float) -> str:
    """How many steps a timed run will make at its pace so far; nothing before a fiftieth of it is over."""
    return f" of about {round(step / share)}" if share >= 0.02 else ""


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
