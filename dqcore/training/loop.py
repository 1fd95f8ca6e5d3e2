"""The loop of every training run: steps, rows of metrics, validations and checkpoints, each at its time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from dqcore.training.arguments import Arguments
from dqcore.training.checkpoint import capture, restore
from dqcore.training.clock import Clock, Moment
from dqcore.training.estimate import Estimate
from dqcore.training.log import MetricsLog, Row
from dqcore.training.schedule import LearningRate, TimedLearningRate
from dqcore.training.stage import NonFiniteLossError, Stage
from dqcore.training.state import write_state
from dqcore.training.stop import StoppedError, StopSignals

__all__ = ["Loop", "NonFiniteLossError"]

Batch = TypeVar("Batch")

#: Seconds after which a row of metrics is due, however few steps there were.
ROW_SECONDS = 15.0
#: More steps than any run takes: where a timed run would end.
NO_END = 2**40


class Loop(Generic[Batch]):
    """The loop of one run.

    Args:
        stage: The stage to train.
        options: Where to write, and how often.
        clock: The time of the run, and all processes.
        learning_rate: The learning rate of each step, and the run's length.
        confirm: Asked before a run of days goes on; None goes on.

    Attributes:
        completed: Steps so far.
    """

    def __init__(
        self,
        stage: Stage[Batch],
        options: Arguments,
        clock: Clock,
        learning_rate: LearningRate | TimedLearningRate,
        *,
        confirm: Callable[[str], bool] | None = None,
    ) -> None:
        self.stage, self.options, self.clock, self.world = stage, options, clock, clock.world
        self.learning_rate, self.confirm = learning_rate, confirm
        self.total = learning_rate.total if isinstance(learning_rate, LearningRate) else None
        self.checkpoint = options.out / "checkpoint.pt"
        self.completed = 0

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, random states included.

        Raises:
            ValueError: It is damaged, or does not fit this run.
        """
        self.completed, broken, self.clock.before = restore(self.checkpoint, self.stage.step, self.world)
        self.stage.broken.update(broken)

    def run(self, progress: Callable[[Row], object] | None) -> list[Row]:
        """Train to the last step; returns the rows of ``metrics.jsonl``, in the main process.

        Raises:
            NonFiniteLossError: A loss became infinite or NaN.
            StoppedError: A signal came; the step was finished, and model and checkpoint were saved.
        """
        with StopSignals() as signals:
            if not self.world.is_main:
                self._train(None, signals)
                return []
            with MetricsLog(
                self.options.out,
                resume_at=self.completed,
                length=self.learning_rate,
                tensorboard=self.options.tensorboard,
                progress=progress,
            ) as log:
                self._train(log, signals)
            return log.rows

    def _train(self, log: MetricsLog | None, signals: StopSignals) -> None:
        options, speed = self.options, _Speed()
        estimate = Estimate(self.learning_rate, self.completed)
        moment = Moment(self.clock.seconds if self.total is None else self.clock.before, 0)
        row_at = saved_at = moment.seconds
        if self._share(moment) >= 1:
            return
        for batch in self.stage.batches(self.completed, NO_END if self.total is None else self.total):
            rate = self.learning_rate(self.completed, moment.seconds)
            numbers, images = self._step(batch, rate)
            self.completed += 1
            speed.images += images
            moment = self.clock.agree(signals.received)
            last = self._share(moment) >= 1
            logged = self.completed % options.log_every == 0 or last or self.completed == 1
            if logged or moment.seconds - row_at >= ROW_SECONDS:
                now = {"images_per_second": speed()}
                self._write(log, numbers | {"learning_rate": rate} | self.stage.status() | now)
                row_at, logged = moment.seconds, True
            if log is not None:
                log.advance(self.completed, moment.seconds)
            stopped = moment.signal and not last
            if stopped:
                self._save()  # first of all: who sent the signal may not wait
            if (self.completed % options.validate_every == 0 or last) and (row := self.stage.validate()) is not None:
                self._write(log, row)
            if stopped:
                raise StoppedError(options.out, self.completed, moment.signal)
            due = moment.seconds - saved_at >= 60 * options.checkpoint_minutes
            if self.completed % options.checkpoint_every == 0 or due or last:
                self._save()
                saved_at = moment.seconds
            if logged:
                speed = _Speed()  # validations and checkpoints do not count
            if last:
                return
            if estimate.after(self.completed, moment.seconds) and not self._goes_on(estimate):
                self._save()
                raise StoppedError(options.out, self.completed, signal.SIGINT)

    def _share(self, moment: Moment) -> float:
        return self.learning_rate.share(self.completed, moment.seconds)

    def _goes_on(self, estimate: Estimate) -> bool:
        """Tell how long the run will take; ask about one of days, where there is somebody to ask."""
        if not self.world.is_main:
            return True
        question = estimate.tell(self.completed)
        return question is None or self.confirm is None or self.world.size > 1 or self.confirm(question)

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
        seconds = self.clock.seconds if self.total is None else None  # of a run of steps, time is no part of the state
        return capture(self.stage.step, self.world, self.completed, self.stage.broken, seconds)

    def _write(self, log: MetricsLog | None, row: Row) -> None:
        if log is not None:
            log.write({"step": self.completed, **row})


class _Speed:
    """Images a second since this was made; the caller counts ``images``."""

    def __init__(self) -> None:
        self.images, self._start = 0, time.perf_counter()

    def __call__(self) -> float:
        return self.images / (time.perf_counter() - self._start)
