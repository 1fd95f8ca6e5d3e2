"""How far a long piece of work has come: a bar that moves on a terminal, plain lines where there is none.

Bars go to stderr and need rich, which is imported when the first bar is made. Lines go to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["TrainingBar", "plain_lines", "progress_bar"]


def progress_bar() -> Progress:
    """A bar for a task of known length, for use in a ``with``: shown on a terminal only, removed at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


class TrainingBar:
    """The bar of a training run: the latest loss stands beside it, and each validation leaves a line above it.

    Args:
        completed: Steps done before.
        total: Steps of the run.
    """

    def __init__(self, completed: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("train", completed=completed, total=total, note="")
        self._bar.start()

    def move(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        self._bar.update(self._task, completed=step)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of a row of metrics."""
        if "loss" in row:
            fine = f"  fine {row['fine_ratio']:.2f}" if "fine_ratio" in row else ""
            note = f"loss {row['loss']:.4f}{fine}  {row['images_per_second']:.0f} images/s"
            self._bar.update(self._task, note=note)
        elif "val_psnr" in row:
            self._bar.console.print(f"step {row['step']}: validation PSNR {row['val_psnr']:.2f} dB")
        elif "val_loss" in row:
            text = f"validation loss {row['val_loss']:.4f}, {row['val_bits_per_image']:.0f} bits an image"
            self._bar.console.print(f"step {row['step']}: {text}")

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def plain_lines(total: int) -> Callable[[Mapping[str, Any]], None] | None:
    """A training run's ``progress`` argument for programs whose output may go to a file.

    Args:
        total: Steps of the run.

    Returns:
        None on a terminal, where the run then shows its own bar. Elsewhere a function that takes each row of metrics
        and prints a line at each validation.
    """
    if sys.stderr.isatty():
        return None
    latest: dict[str, Any] = {}

    def show(row: Mapping[str, Any]) -> None:
        latest.update(row)
        if numbers := _validation_numbers(row, latest):
            print(f"step {row['step']:>5} of {total}: {numbers}", flush=True)

    return show


def _validation_numbers(row: Mapping[str, Any], latest: Mapping[str, Any]) -> str:
    """The numbers of a validation, of a tokenizer or a prior, in words; empty for any other row."""
    if "val_psnr" in row:
        loss, speed = latest["reconstruction_loss"], latest["images_per_second"]
        return f"L1 {loss:.3f}, held-out PSNR {row['val_psnr']:.2f} dB, {speed:.0f} images/s"
    if "val_bits_per_image" in row:
        return f"held-out {row['val_bits_per_image']:.0f} bits an image"
    return ""
