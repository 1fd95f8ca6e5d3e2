"""The loop of every training run: steps, rows of metrics, validations and checkpoints, each at its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from dqcore.distributed import World
from dqcore.training.arguments import Arguments
from dqcore.training.checkpoint import capture, restore
from dqcore.training.log import MetricsLog, Row
from dqcore.training.schedule import LearningRate
from dqcore.training.stage import NonFiniteLossError, Stage
from dqcore.training.state import write_state

__all__ = ["Loop", "NonFiniteLossError"]

Batch = TypeVar("Batch")


class Loop(Generic[Batch]):
    """The loop of one run.

    Args:
        stage: The stage to train.
        options: Where to write, and how often.
        world: All processes.
        total: Steps of the run.
        learning_rate: The learning rate of each step.

    Attributes:
        completed: Steps so far.
    """

    def __init__(
        self, stage: Stage[Batch], options: Arguments, world: World, total: int, learning_rate: LearningRate
    ) -> None:
        self.stage, self.options, self.world = stage, options, world
        self.total, self.learning_rate = total, learning_rate
        self.checkpoint = options.out / "checkpoint.pt"
        self.completed = 0

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, random states included.

        Raises:
            ValueError: It is damaged, or does not fit this run.
        """
        self.completed, broken = restore(self.checkpoint, self.stage.step, self.world)
        self.stage.broken.update(broken)

    def run(self, progress: Callable[[Row], object] | None) -> list[Row]:
        """Train to the last step; returns the rows of ``metrics.jsonl``, in the main process.

        Raises:
            NonFiniteLossError: A loss became infinite or NaN.
        """
        if not self.world.is_main:
            self._train(None)
            return []
        with MetricsLog(
            self.options.out,
            resume_at=self.completed,
            total=self.total,
            tensorboard=self.options.tensorboard,
            progress=progress,
        ) as log:
            self._train(log)
        return log.rows

    def _train(self, log: MetricsLog | None) -> None:
        options, speed = self.options, _Speed()
        for batch in self.stage.batches(self.completed, self.total):
            rate = self.learning_rate(self.completed)
            numbers, images = self._step(batch, rate)
            self.completed += 1
            speed.images += images
            last = self.completed == self.total
            logged = self.completed % options.log_every == 0 or last or self.completed == 1
            if logged:
                now = {"images_per_second": speed()}
                self._write(log, numbers | {"learning_rate": rate} | self.stage.status() | now)
            if (self.completed % options.validate_every == 0 or last) and (row := self.stage.validate()) is not None:
                self._write(log, row)
            if self.completed % options.checkpoint_every == 0 or last:
                self._save()
            if logged:
                speed = _Speed()  # validations and checkpoints do not count
            if log is not None:
                log.advance(self.completed)

    def _step(self, batch: Batch, rate: float) -> tuple[Row, int]:
        """Train on a batch. If its loss is not finite, keep it and the state in a file for whoever looks into it."""
        try:
            return self.stage.train(batch, self.completed, rate)
        except NonFiniteLossError as error:
            state = self._state()
            contents = self.stage.contents_of(batch)
            path = self.options.out / "nonfinite.pt"
            if self.world.is_main:
                write_state(path, state | {"term": error.term} | contents)
            error.args = (f"{error.args[0]}; the batch and the state are in {path}",)
            raise

    def _save(self) -> None:
        state = self._state()
        if self.world.is_main:
            self.stage.save_model()
            write_state(self.checkpoint, state)
        self.world.barrier()

    def _state(self) -> Row:
        return capture(self.stage.step, self.world, self.completed, self.stage.broken)

    def _write(self, log: MetricsLog | None, row: Row) -> None:
        if log is not None:
            log.write({"step": self.completed, **row})


class _Speed:
    """Images a second since this was made; the caller counts ``images``."""

    def __init__(self) -> None:
        self.images, self._start = 0, time.perf_counter()

    def __call__(self) -> float:
        return self.images / (time.perf_counter() - self._start)
