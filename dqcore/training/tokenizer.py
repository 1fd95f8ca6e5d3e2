"""Train a tokenizer: the loop around :class:`dqcore.training.step.TokenizerStep`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dqcore.data.batches import Batch
from dqcore.data.images import uint8_to_float
from dqcore.training.build import (
    check_image_size,
    compile_networks,
    fit_router,
    new_model,
    new_schedule,
    new_trainer,
)
from dqcore.training.checkpoint import capture, restore
from dqcore.training.distributed import World, join_world
from dqcore.training.files import sole_owner, write_atomically, write_json, write_state
from dqcore.training.images import find_images
from dqcore.training.log import MetricsLog, Row
from dqcore.training.options import FREE_ON_RESUME, TokenizerTraining
from dqcore.training.step import NonFiniteLossError
from dqcore.training.validation import validate

__all__ = ["TokenizerRun", "TokenizerTraining", "train_tokenizer"]


@dataclass(frozen=True)
class TokenizerRun:
    """A finished run.

    Attributes:
        path: Its folder: ``metrics.jsonl``, ``config.json``, ``model/`` (the weights to use), ``checkpoint.pt``.
        model: The weights to use, in evaluation mode: the last, or their moving average if the run kept one.
        metrics: The rows of ``metrics.jsonl``.
    """

    path: Path
    model: Any
    metrics: list[Row]


def train_tokenizer(
    options: TokenizerTraining, *, model: nn.Module | None = None, progress: Callable[[Row], object] | None = None
) -> TokenizerRun:
    """Train a tokenizer with the paper's losses (section 3.2; supplement, section 1).

    Started by ``torchrun``, every process calls this with the same options. The caller's random state is left alone.

    Args:
        options: What to train, on what, and how.
        model: Train this model instead of a new one of ``options.preset``.
        progress: Called with each row of metrics; without it, a progress bar is shown on a terminal.

    Returns:
        The run.

    Raises:
        ValueError: options, images or checkpoint do not fit, or another process runs it; nothing has been written.
        FileNotFoundError: a folder does not exist.
        PerceptualUnavailableError: LPIPS was asked for and its weights are not there.
        NonFiniteLossError: a loss became infinite or NaN; ``nonfinite.pt`` in the run's folder holds the batch, its
            file names and the state, and ``checkpoint.pt`` the last good one.

    Determinism: on the CPU, a run and a resumed run give the same bits for the same number of threads.
    """
    options = options.resolved()
    world = join_world(options.device)
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        return _Run(options, world, model).train(progress)


class _Run:
    """One run of the loop: everything is checked and built here before the first file is written."""

    def __init__(self, options: TokenizerTraining, world: World, model: nn.Module | None) -> None:
        self.options, self.world = options, world
        self.checkpoint = options.out / "checkpoint.pt"
        self._check_folder()
        self.images = find_images(options, world)
        model = new_model(options) if model is None else model
        check_image_size(options, model)
        self.trainer = new_trainer(options, world, model)
        self.total, self.learning_rate = new_schedule(options, self.images.steps_per_epoch, world)
        self.completed = 0
        self.broken: set[str] = set()

    def train(self, progress: Callable[[Row], object] | None) -> TokenizerRun:
        options = self.options
        if not self.world.is_main:
            self._start()
            return self._loop(None)
        with sole_owner(options.out):
            self._start()
            write_json(options.out / "config.json", self._description())
            with MetricsLog(
                options.out,
                resume_at=self.completed,
                total=self.total,
                tensorboard=options.tensorboard,
                progress=progress,
            ) as log:
                return self._loop(log)

    def _start(self) -> None:
        """Put the state of the last checkpoint back, or begin."""
        options = self.options
        if options.resume and self.checkpoint.is_file():
            self._check_same_run()
            self.completed, broken = restore(self.checkpoint, self.trainer, self.world)
            self.broken.update(broken)
        else:
            fit_router(options, self.trainer, self.images)
            torch.manual_seed(options.seed + self.world.rank)
        if options.compile:
            compile_networks(self.trainer.model)

    def _loop(self, log: MetricsLog | None) -> TokenizerRun:
        options = self.options
        clock, since = time.perf_counter(), self.completed
        for batch in self.images.batches(self.completed, self.total):
            rate = self.learning_rate(self.completed)
            numbers = self._step(batch, rate)
            self.completed += 1
            self.broken.update(batch.broken)
            last = self.completed == self.total
            logged = self.completed % options.log_every == 0 or last or self.completed == 1
            if logged:
                images = (self.completed - since) * options.batch_size * self.world.size
                speed = images / (time.perf_counter() - clock)
                self._write(log, numbers | {"learning_rate": rate} | self._state() | {"images_per_second": speed})
            if len(self.images.validation) and (self.completed % options.validate_every == 0 or last):
                self._write(log, self._validate())
            if self.completed % options.checkpoint_every == 0 or last:
                self._save()
            if logged:
                clock, since = time.perf_counter(), self.completed
            if log is not None:
                log.advance(self.completed)
        return TokenizerRun(options.out, self._model_to_use().eval(), log.rows if log is not None else [])

    def _state(self) -> Row:
        """What is not a loss: the codebook's use, and the broken files met so far, which are named in a file."""
        quantizer: Any = self.trainer.model.quantizer
        everyone = sorted(set().union(*self.world.gather(sorted(self.broken))))
        if everyone and self.world.is_main:
            text = "".join(f"{reason}\n" for reason in everyone)
            write_atomically(self.options.out / "broken_images.txt", lambda file: file.write(text.encode()))
        usage, perplexity = float(quantizer.usage), float(quantizer.perplexity)
        return {"usage": usage, "perplexity": perplexity, "broken_images": len(everyone)}

    def _step(self, batch: Batch, rate: float) -> dict[str, Any]:
        images = uint8_to_float(batch.images.to(self.world.device, non_blocking=True))
        try:
            return self.trainer(images, self.completed, rate)
        except NonFiniteLossError as error:
            state = capture(self.trainer, self.world, self.completed, self.broken)
            files = self.world.gather(batch.paths)
            path = self.options.out / "nonfinite.pt"
            if self.world.is_main:
                write_state(path, state | {"term": error.term, "files": files, "images": batch.images})
            error.args = (f"{error.args[0]}; the batch, its file names and the state are in {path}",)
            raise

    def _validate(self) -> Row:
        return validate(self._model_to_use(), self.images.validation_batches(), self.world, self.trainer.perceptual)

    def _save(self) -> None:
        state = capture(self.trainer, self.world, self.completed, self.broken)
        if self.world.is_main:
            self._model_to_use().save_pretrained(self.options.out / "model")
            write_state(self.checkpoint, state)
        self.world.barrier()

    def _model_to_use(self) -> Any:
        average = self.trainer.average
        return self.trainer.model if average is None else average.module

    def _write(self, log: MetricsLog | None, row: Row) -> None:
        if log is not None:
            log.write({"step": self.completed, **row})

    def _check_folder(self) -> None:
        if not self.options.resume and self.checkpoint.is_file():
            raise ValueError(f"out: {self.options.out} holds a run already; resume it or choose another folder")

    def _check_same_run(self) -> None:
        path = self.options.out / "config.json"
        try:
            before = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"resume: {path} cannot be read ({error})") from error
        now = self._description()
        for name, value in now["options"].items():
            if name not in FREE_ON_RESUME and before["options"].get(name) != value:
                raise ValueError(f"{name}: the run was started with {before['options'].get(name)}, got {value}")
        if before["data"]["fingerprint"] != now["data"]["fingerprint"]:
            raise ValueError("data: the folder's files are not those that the run was started with")

    def _description(self) -> dict[str, Any]:
        model = self.trainer.model
        config = getattr(model, "config", None)
        return {
            "options": self.options.as_json(),
            "model": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else type(model).__name__,  # type: ignore[arg-type]
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "data": {
                "training": len(self.images.training),
                "validation": len(self.images.validation),
                "fingerprint": self.images.fingerprint,
            },
            "steps": self.total,
            "steps_per_epoch": self.images.steps_per_epoch,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "device": str(self.world.device),
            "versions": {
                "dqcore": importlib.metadata.version("dqcore"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
