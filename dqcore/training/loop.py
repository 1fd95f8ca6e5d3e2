"""The loop of every training run: steps, rows of metrics, validations and checkpoints, each at its time."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import Generic, TypeVar

from dqcore.errors import InputError
from dqcore.models.checks import check_finite
from dqcore.training.arguments import Arguments
from dqcore.training.checkpoint import capture, restore
from dqcore.training.clock import Clock, Moment
from dqcore.training.estimate import Estimate
from dqcore.training.log import MetricsLog, Row
from dqcore.training.schedule import LearningRate, TimedLearningRate
from dqcore.training.shards import ShardedCheckpoints, local
from dqcore.training.stage import NonFiniteLossError, NonFiniteWeightsError, Stage
from dqcore.training.state import write_state
from dqcore.training.status import Status, peak_memory, seconds_left
from dqcore.training.stop import StoppedError, StopSignals
from dqcore.training.times import Times

__all__ = ["CHECKPOINT", "Loop", "NonFiniteLossError", "NonFiniteWeightsError"]

Batch = TypeVar("Batch")

#: The file in a run's folder that it goes on from.
CHECKPOINT = "checkpoint.pt"
#: Seconds after which a row of metrics is due, however few steps there were.
ROW_SECONDS = 15.0
#: The last step of a timed run: more steps than any run takes, as the clock ends it.
NO_END = 2**40


class Loop(Generic[Batch]):
    """The loop of one run.

    Args:
        stage: The stage to train.
        options: Where to write, and how often; resolved.
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
        assert options.log_every is not None and options.validate_every is not None, "options are resolved"
        self.log_every, self.validate_every = options.log_every, options.validate_every
        self.total = learning_rate.total if isinstance(learning_rate, LearningRate) else None
        self.checkpoint = options.out / CHECKPOINT
        self.completed = 0
        self._shards = ShardedCheckpoints(self.checkpoint, self.world) if stage.step.sharded else None

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, random states included.

        Raises:
            ValueError: It is damaged, or does not fit this run.
        """
        self.completed, broken, self.clock.before = restore(self.checkpoint, self.stage.step, self.world)
        self.stage.broken.update(broken)
        if self.total is not None and self.completed > self.total:
            raise InputError(f"steps: {self.completed} are done already, expected at least as many, got {self.total}")

    def run(self, progress: Callable[[Row], object] | None) -> list[Row]:
        """Train to the last step; returns the rows of ``metrics.jsonl``, in the main process.

        Raises:
            NonFiniteLossError: A loss became infinite or NaN.
            StoppedError: A signal came; the step was finished, and model and checkpoint were saved.
        """
        with StopSignals() as signals:
            if not self.world.is_main:
                self._train_to_the_end(None, signals)
                return []
            with MetricsLog(
                self.options.out,
                resume_at=self.completed,
                length=self.learning_rate,
                tensorboard=self.options.tensorboard,
                progress=progress,
            ) as log:
                self._train_to_the_end(log, signals)
            return log.rows

    def _train_to_the_end(self, log: MetricsLog | None, signals: StopSignals) -> None:
        """Train, and wait for a checkpoint that is still being written."""
        try:
            self._train(log, signals)
        except (StoppedError, NonFiniteLossError, NonFiniteWeightsError):
            self._wait_for_checkpoint()
            raise
        self._wait_for_checkpoint()

    def _wait_for_checkpoint(self) -> None:
        """Wait until a sharded checkpoint is written; others are written at once."""
        if self._shards is not None:
            self._shards.finish()

    def _train(self, log: MetricsLog | None, signals: StopSignals) -> None:
        estimate = Estimate(self.learning_rate, self.completed)
        moment = Moment(self.clock.before, 0)
        if self._share(moment) >= 1:
            # It may be older than the checkpoint, if the run was killed between the two.
            self.stage.save_model(self.options.out / "model")
            return
        if self.total is None:
            moment = self.clock.agree(0)
        times = Times(moment.seconds)
        for batch in self.stage.batches(self.completed, NO_END if self.total is None else self.total):
            rate = self.learning_rate(self.completed, moment.seconds)
            numbers, images = self._step(batch, rate)
            self.completed += 1
            times.add(images)
            moment = self.clock.agree(signals.received)
            last = self._share(moment) >= 1
            logged = self._record(log, numbers | {"learning_rate": rate}, moment, times, last)
            with times.paused():
                self._validate_and_save(log, moment, times, last)
            if logged:
                times.restart()
            if last:
                return
            if estimate.after(self.completed, moment.seconds) and not self._goes_on(estimate):
                self._save()
                raise StoppedError(self.options.out, self.completed, signal.SIGINT)

    def _record(self, log: MetricsLog | None, numbers: Row, moment: Moment, times: Times, last: bool) -> bool:
        """Write a row of metrics if it is time; returns whether it was."""
        logged = self.completed % self.log_every == 0 or last or self.completed == 1
        logged |= moment.seconds - times.row >= ROW_SECONDS
        if logged:
            self._write(log, numbers | self.stage.status() | {"images_per_second": times.images_per_second})
            if log is not None:
                log.tell(self._status(moment, times, last))
            times.row = moment.seconds
        if log is not None:
            log.advance(self.completed, moment.seconds)
        return logged

    def _validate_and_save(self, log: MetricsLog | None, moment: Moment, times: Times, last: bool) -> None:
        """Validate and write a checkpoint, each if it is time; stop after a signal."""
        options = self.options
        stopped = bool(moment.signal) and not last
        if options.keep_every and self.completed % options.keep_every == 0:
            self._check_weights()
            self.stage.save_model(options.out / "kept" / f"{self.completed:07d}")
        if stopped:
            self._save()  # before the validation: whoever sent the signal may not wait for that
        if self.completed % self.validate_every == 0 or last:
            with self.stage.settled() if last else contextlib.nullcontext():
                if (row := self.stage.validate()) is not None:
                    self._write(log, row)
                if log is not None and (picture := self.stage.picture()) is not None:
                    log.show(self.completed, picture, self.stage.pictured)
        if stopped:
            raise StoppedError(options.out, self.completed, moment.signal)
        due = moment.seconds - times.saved >= 60 * options.checkpoint_minutes
        if self.completed % options.checkpoint_every == 0 or due or last:
            self._save()
            times.saved = moment.seconds

    def _share(self, moment: Moment) -> float:
        return self.learning_rate.share(self.completed, moment.seconds)

    def _status(self, moment: Moment, times: Times, last: bool) -> Status:
        left = 0.0 if last else seconds_left(self.learning_rate, self.completed, moment.seconds, times.step_seconds)
        return Status(self.completed, self.total, times.images_per_second, peak_memory(self.world.device), left)

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
            self._explain(error, batch)
            raise

    def _explain(self, error: NonFiniteLossError, batch: Batch) -> None:
        """Write batch and state to a file, and add to the error which images may be to blame."""
        state = self._state()
        contents = self.stage.contents_of(batch)
        path = self.options.out / "nonfinite.pt"
        if self.world.is_main:
            write_state(path, state | {"term": error.term} | contents)
        error.args = (f"{error.args[0]}; {self.stage.blame(batch)}; the batch and the state are in {path}",)

    def _save(self) -> None:
        self._check_weights()
        state = self._state()
        if self._shards is not None:
            first = self.world.of_first(not self.checkpoint.is_file())
            self._shards.save(state, self.stage.step.tensors())
            if first:  # a model without a checkpoint could not be resumed
                self._shards.finish()
        elif self.world.is_main:
            write_state(self.checkpoint, state)  # first: a model without a checkpoint could not be resumed
        self.stage.save_model(self.options.out / "model")
        self.world.barrier()

    def _check_weights(self) -> None:
        """Raise rather than replace a good checkpoint by one with weights that nobody can use."""
        for model in {self.stage.step.model, self.stage.step.model_to_use}:
            found = ""
            try:
                check_finite({name: local(value) for name, value in model.state_dict().items()}, "not saved")
            except InputError as error:
                found = str(error)
            if found := next(filter(None, self.world.gather(found)), ""):
                raise NonFiniteWeightsError(f"{found} after step {self.completed}; try a lower learning rate")

    def _state(self) -> Row:
        seconds = self.clock.seconds if self.total is None else None  # only a timed run depends on the time
        return capture(self.stage.step, self.world, self.completed, self.stage.broken, seconds)

    def _write(self, log: MetricsLog | None, row: Row) -> None:
        if log is not None:
            log.write({"step": self.completed, **row})
