"""What training runs have in common: steps, rows of metrics, validations and checkpoints, each at its time."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dqcore.distributed import World
from dqcore.errors import DqcoreError, InputError
from dqcore.files import write_json
from dqcore.training.checkpoint import capture
from dqcore.training.log import MetricsLog, Row
from dqcore.training.schedule import LearningRate
from dqcore.training.state import write_state

__all__ = ["Loop", "NonFiniteLossError"]


class NonFiniteLossError(DqcoreError, FloatingPointError):
    """A loss or the gradient became infinite or NaN; no optimiser has used it.

    Attributes:
        term: The first offending term, in the order in which a step looks for it.
        step: The step it happened in, counted from 1.
    """

    def __init__(self, term: str, step: int, value: float) -> None:
        super().__init__(f"{term} is {value} in step {step}")
        self.term, self.step = term, step


class Loop(ABC):
    """One run. A subclass makes everything in ``__init__``, before the first file is written.

    Args:
        options: Every option of the run; those named here are the same in all.
        world: All processes.

    Attributes:
        trainer: What a step changes, with ``model`` and ``average``; made by the subclass.
        total: Steps of the run; likewise.
        learning_rate: Of each step; likewise.
        completed: Steps so far.
        broken: Files that could not be read.
    """

    trainer: Any
    total: int
    learning_rate: LearningRate
    #: Options that may differ when a run is resumed.
    free_on_resume: frozenset[str]
    #: What a mistaken resumption is told when :meth:`sources` differ, up to "that the run was started with".
    other_sources: str

    def __init__(self, options: Any, world: World) -> None:
        self.options, self.world = options, world
        self.checkpoint = options.out / "checkpoint.pt"
        self.completed = 0
        self.broken: set[str] = set()

    @abstractmethod
    def start(self) -> None:
        """Put the state of the last checkpoint back, or begin."""

    @abstractmethod
    def batches(self) -> Iterable[Any]:
        """What the steps from ``completed`` to ``total`` are trained on."""

    @abstractmethod
    def step(self, batch: Any, rate: float) -> tuple[Row, int]:
        """Train on a batch: its numbers, and the images of all processes."""

    @abstractmethod
    def validate(self) -> Row | None:
        """What is measured on held-out images; None if there are none."""

    @abstractmethod
    def save_model(self) -> None:
        """Write the weights to use into the run's folder."""

    @abstractmethod
    def contents_of(self, batch: Any) -> Row:
        """What names a batch whose loss was not finite; every process calls this."""

    @abstractmethod
    def sources(self) -> Row:
        """What the run depends on beside its options, for ``config.json``: a resumed run must have the same."""

    @abstractmethod
    def about(self) -> Row:
        """The model and whatever else is worth a line in ``config.json``."""

    def state(self) -> Row:
        """What a row of metrics tells beside the step's numbers."""
        return {}

    def run(self, progress: Callable[[Row], object] | None) -> list[Row]:
        """Train to the end; the rows of ``metrics.jsonl``, in the main process."""
        self.start()
        if not self.world.is_main:
            self._loop(None)
            return []
        options = self.options
        write_json(options.out / "config.json", self._description())
        with MetricsLog(
            options.out, resume_at=self.completed, total=self.total, tensorboard=options.tensorboard, progress=progress
        ) as log:
            self._loop(log)
        return log.rows

    def model_to_use(self) -> Any:
        """The model, or the moving average of its weights if the run keeps one."""
        average = self.trainer.average
        return self.trainer.model if average is None else average.module

    def check_folder(self) -> None:
        """Raise if a run lies there that is not to be resumed."""
        if not self.options.resume and self.checkpoint.is_file():
            raise InputError(f"out: {self.options.out} holds a run already; resume it or choose another folder")

    def check_same_run(self) -> None:
        """Raise unless the run that lies there was started with the same options, on the same data."""
        path = self.options.out / "config.json"
        try:
            before = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"resume: {path} cannot be read ({error})") from error
        now = self._description()
        for name, value in now["options"].items():
            if name not in self.free_on_resume and before["options"].get(name) != value:
                raise InputError(f"{name}: the run was started with {before['options'].get(name)}, got {value}")
        if any(before[name] != now[name] for name in self.sources()):
            raise InputError(f"{self.other_sources} that the run was started with")

    def _loop(self, log: MetricsLog | None) -> None:
        options = self.options
        clock, since = time.perf_counter(), 0
        for batch in self.batches():
            rate = self.learning_rate(self.completed)
            numbers, images = self._step(batch, rate)
            self.completed += 1
            since += images
            last = self.completed == self.total
            logged = self.completed % options.log_every == 0 or last or self.completed == 1
            if logged:
                speed = since / (time.perf_counter() - clock)
                self._write(log, numbers | {"learning_rate": rate} | self.state() | {"images_per_second": speed})
            if (self.completed % options.validate_every == 0 or last) and (row := self.validate()) is not None:
                self._write(log, row)
            if self.completed % options.checkpoint_every == 0 or last:
                self._save()
            if logged:
                clock, since = time.perf_counter(), 0
            if log is not None:
                log.advance(self.completed)

    def _step(self, batch: Any, rate: float) -> tuple[Row, int]:
        try:
            return self.step(batch, rate)
        except NonFiniteLossError as error:
            state = capture(self.trainer, self.world, self.completed, self.broken)
            contents = self.contents_of(batch)
            path = self.options.out / "nonfinite.pt"
            if self.world.is_main:
                write_state(path, state | {"term": error.term} | contents)
            error.args = (f"{error.args[0]}; the batch and the state are in {path}",)
            raise

    def _save(self) -> None:
        state = capture(self.trainer, self.world, self.completed, self.broken)
        if self.world.is_main:
            self.save_model()
            write_state(self.checkpoint, state)
        self.world.barrier()

    def _write(self, log: MetricsLog | None, row: Row) -> None:
        if log is not None:
            log.write({"step": self.completed, **row})

    def _description(self) -> Row:
        return {
            "options": self.options.as_json(),
            **self.about(),
            "parameters": sum(parameter.numel() for parameter in self.trainer.model.parameters()),
            **self.sources(),
            "steps": self.total,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "device": str(self.world.device),
            "versions": {
                "dqcore": importlib.metadata.version("dqcore"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
