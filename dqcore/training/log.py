"""Where a run's numbers and pictures go: into its folder, to a progress bar or the log, on request to TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from dqcore.data.images import tensor_to_image
from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.files.pictures import is_ours, write_picture
from dqcore.training.lines import EvenLines, TrainingBar
from dqcore.training.schedule import LearningRate, TimedLearningRate
from dqcore.training.status import Status

Row = dict[str, Any]

#: Pictures that a run keeps: the first, the last, and some between them.
KEPT_PICTURES = 12


def read_metrics(path: Path, *, last_step: int | None = None) -> list[Row]:
    """Rows of a ``metrics.jsonl``; a killed run may have left an incomplete last line, which is passed over.

    Args:
        path: The file; if it is missing, there are no rows.
        last_step: Leave out the rows of later steps.

    Raises:
        InputError: A line is no row of metrics, or comes before one of an earlier step.
    """
    if not path.is_file():
        return []
    text = path.read_text(errors="replace")
    lines = text.splitlines()
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not text.endswith("\n"):
            break
        row = _row(line)
        if row is None or (rows and row["step"] < rows[-1]["step"]):
            expected = "expected rows with a step, the earlier ones first"
            raise InputError(f"{path}: damaged, {expected}, got in line {number} {line[:60]!r}")
        rows.append(row)
    return [row for row in rows if last_step is None or row["step"] <= last_step]


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


class MetricsLog:
    """Writes the rows of a run.

    Args:
        folder: The run's folder; rows go to its ``metrics.jsonl``, pictures to ``pictures/``.
        resume_at: Step that a resumed run starts after. Rows and pictures of later steps are removed; with 0, all are.
        length: The run's length.
        tensorboard: Also write TensorBoard events to ``folder/tensorboard``.
        progress: Called with each row. If None, a progress bar is shown where stderr is a terminal, and elsewhere lines
            at even times go to the log.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume_at: int,
        length: LearningRate | TimedLearningRate,
        tensorboard: bool = False,
        progress: Callable[[Row], object] | None = None,
    ) -> None:
        path = folder / "metrics.jsonl"
        self.rows = read_metrics(path, last_step=resume_at) if resume_at else []
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(path, lambda file: file.write(text.encode()))
        for step, picture in read_pictures(folder):
            if step > resume_at:
                picture.unlink()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._events = _event_writer(folder, resume_at) if tensorboard else None
        self._folder, self._progress = folder, progress
        self._length = length
        self._bar = _bar(resume_at, length) if progress is None and sys.stderr.isatty() else None
        total = length.total if isinstance(length, LearningRate) else None
        self._lines = EvenLines(total) if progress is None and self._bar is None else None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()

    def advance(self, step: int, seconds: float) -> None:
        """Show that this many steps are done, after this many seconds."""
        if self._bar is not None:
            self._bar.move(step if isinstance(self._length, LearningRate) else seconds)
        if self._lines is not None:
            self._lines.move(step, self._length.share(step, seconds))

    def write(self, row: Row) -> None:
        """Add a row; it must have a ``step``."""
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._events.add_scalar(name, value, row["step"])
        if self._progress is not None:
            self._progress(row)
        if self._bar is not None:
            self._bar.show(row)
        if self._lines is not None:
            self._lines.show(row)

    def tell(self, status: Status) -> None:
        """Say what the run is doing now."""
        status.write(self._folder)
        if self._events is not None:
            for name in ("memory_gib", "seconds_left"):
                self._events.add_scalar(name, getattr(status, name), status.step)

    def show(self, step: int, picture: Tensor, pictured: str) -> None:
        """Keep a picture ``(3, H, W)`` in [-1, 1] of what the model does after a step, and say what it shows."""
        folder = self._folder / "pictures"
        write_picture(folder / f"{step:08d}.png", tensor_to_image(picture), "training")
        _thin(folder)
        if self._events is not None:
            self._events.add_image(pictured, (picture + 1) / 2, step)


def read_pictures(folder: Path) -> list[tuple[int, Path]]:
    """The pictures of a run, by their steps.

    Args:
        folder: The run's folder.
    """
    paths = sorted((folder / "pictures").glob("????????.png"))
    return [(int(path.stem), path) for path in paths if path.stem.isdecimal() and is_ours(path, "training")]


def _thin(folder: Path) -> None:
    """Remove every other picture where there are too many."""
    paths = [path for _, path in read_pictures(folder.parent)]
    for path in paths[1:-1:2] if len(paths) > KEPT_PICTURES else ():
        path.unlink()


def _bar(resume_at: int, length: LearningRate | TimedLearningRate) -> TrainingBar:
    if isinstance(length, LearningRate):
        return TrainingBar(resume_at, length.total)
    return TrainingBar(0, length.seconds, "seconds")


def _event_writer(folder: Path, resume_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard: the package is missing: pip install 'dqcore[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1 if resume_at else None)
