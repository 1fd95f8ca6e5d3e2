"""How far a training run has come, with its latest numbers: a bar on a terminal, lines where there is none."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from dqcore.progress import LINE_SECONDS, time_left

__all__ = ["EvenLines", "TrainingBar"]

log = logging.getLogger(__name__)


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
        self._told: Mapping[str, Any] = {}
        self._start = time.monotonic()
        self._next = 0.0
        self._first: tuple[float, float] | None = None

    def move(self, step: int, share: float) -> None:
        """Show the latest numbers, if it is time. Numbers are shown once: they are not those of a later step.

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
        numbers = "" if self._latest is self._told else _training_numbers(self._latest)
        text, self._told = "  ".join(filter(None, (numbers, left))), self._latest
        of = _of_about(step, share) if self._total is None else f" of {self._total}"
        per_cent = 100 if share >= 1 else min(99, round(100 * share))  # 100 is the end, not step 999 of 1000
        log.info("step %5d%s, %2d %%%s", step, of, per_cent, f": {text}" if text else "")

    def show(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of a row of metrics."""
        if text := _validation_numbers(row):
            of = "" if self._total is None else f" of {self._total}"
            log.info("step %5d%s: %s", row["step"], of, text)
        elif "loss" in row:
            self._latest = row


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
