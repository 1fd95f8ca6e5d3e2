"""Where a run's numbers go: always into a JSONL file, on a terminal to a progress bar, on request to TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.progress import TrainingBar

Row = dict[str, Any]


def read_metrics(path: Path, *, last_step: int | None = None) -> list[Row]:
    """Rows of a ``metrics.jsonl``; a killed run may have left an incomplete last line, which is passed over.

    Args:
        path: The file; if it is missing, there are no rows.
        last_step: Leave out the rows of later steps.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if last_step is None or row["step"] <= last_step:
            rows.append(row)
    return rows


class MetricsLog:
    """Writes the rows of a run.

    Args:
        folder: The run's folder; rows go to its ``metrics.jsonl``.
        resume_at: Step that a resumed run starts after. Rows of later steps are removed; with 0, all rows are.
        total: Steps of the run.
        tensorboard: Also write TensorBoard events to ``folder/tensorboard``.
        progress: Called with each row. If None, a progress bar is shown where stderr is a terminal.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume_at: int,
        total: int,
        tensorboard: bool = False,
        progress: Callable[[Row], object] | None = None,
    ) -> None:
        path = folder / "metrics.jsonl"
        self.rows = read_metrics(path, last_step=resume_at) if resume_at else []
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(path, lambda file: file.write(text.encode()))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._events = _event_writer(folder, resume_at) if tensorboard else None
        self._progress = progress
        self._bar = TrainingBar(resume_at, total) if progress is None and sys.stderr.isatty() else None

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

    def advance(self, step: int) -> None:
        """Show that this many steps are done."""
        if self._bar is not None:
            self._bar.move(step)

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


def _event_writer(folder: Path, resume_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard: the package is missing: pip install 'dqcore[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1 if resume_at else None)
