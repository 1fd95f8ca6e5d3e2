"""Train a prior: the loop around :class:`dqcore.training.prior_step.PriorStep`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.codes_cache import CachedCodes, TokenBatches
from dqcore.models.saved import PRIORS
from dqcore.training.average import WeightAverage
from dqcore.training.checkpoint import capture, restore
from dqcore.training.distributed import World, join_world
from dqcore.training.files import sole_owner, write_json, write_state
from dqcore.training.log import MetricsLog, Row
from dqcore.training.prior_codes import keep_tokenizer, training_codes
from dqcore.training.prior_options import FREE_ON_RESUME, PriorTraining
from dqcore.training.prior_step import PriorStep
from dqcore.training.schedule import LearningRate
from dqcore.training.step import NonFiniteLossError

__all__ = ["PriorRun", "PriorTraining", "train_prior"]


@dataclass(frozen=True)
class PriorRun:
    """A finished run.

    Attributes:
        path: Its folder: ``metrics.jsonl``, ``config.json``, ``model/`` (the weights to use, with the tokenizer in
            ``model/tokenizer/``), ``checkpoint.pt``.
        model: The weights to use, in evaluation mode.
        metrics: The rows of ``metrics.jsonl``.
        classes: Names of the classes, by label.
    """

    path: Path
    model: Any
    metrics: list[Row]
    classes: tuple[str, ...]


def train_prior(options: PriorTraining, *, progress: Callable[[Row], object] | None = None) -> PriorRun:
    """Train a prior with the paper's losses (section 3.3; supplement, section 1) on packed batches.

    Started by ``torchrun``, every process calls this with the same options. The caller's random state is left alone.

    Args:
        options: What to train, on what, and how.
        progress: Called with each row of metrics; without it, a progress bar is shown on a terminal.

    Raises:
        ValueError: Options, codes, tokenizer or checkpoint do not fit, or another process runs it.
        FileNotFoundError: A folder does not exist.
        NonFiniteLossError: A loss became infinite or NaN; ``nonfinite.pt`` in the run's folder holds the batch and the
            state, and ``checkpoint.pt`` the last good one.

    Determinism: on the CPU, a run and a resumed run give the same bits for the same number of threads.
    """
    world = join_world(options.device)
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        if not world.is_main:
            return _Run(options, world).train(None)
        _check_folder(options)
        with sole_owner(options.out):
            return _Run(options, world).train(progress)


class _Run:
    """One run of the loop."""

    def __init__(self, options: PriorTraining, world: World) -> None:
        self.options, self.world = options, world
        self.checkpoint = options.out / "checkpoint.pt"
        self.codes = training_codes(options, world)
        torch.manual_seed(options.seed)
        model = new_prior(options, self.codes).to(world.device)
        world.broadcast(model)
        average = None if options.average_decay is None else WeightAverage(model, options.average_decay)
        self.trainer = PriorStep(
            model,
            world,
            weight_decay=options.weight_decay,
            gradient_clip=options.gradient_clip,
            autocast=_autocast(options, world.device),
            average=average,
        )
        self.training, self.held_out = _split(self.codes, options.validation_share, options.seed, options.views)
        lengths = self.codes.lengths[self.training] + getattr(model.tape, "num_specials", 1)
        self.batches = TokenBatches(lengths, options.token_budget, seed=options.seed, rank=world.rank, world=world.size)
        epochs = 100.0 if options.epochs is None else options.epochs
        self.total = options.steps if options.steps is not None else max(1, self.batches.total(epochs))
        warmup = min(options.warmup_steps, self.total)
        self.learning_rate = LearningRate(options.learning_rate, warmup, self.total, options.schedule)
        self.completed = 0

    def train(self, progress: Callable[[Row], object] | None) -> PriorRun:
        options = self.options
        torch.manual_seed(options.seed + self.world.rank)
        if options.resume and self.checkpoint.is_file():
            self._check_same_run()
            self.completed, _ = restore(self.checkpoint, self.trainer, self.world)
        if options.compile:
            for part in self.trainer.model.children():
                for block in getattr(part, "blocks", []):
                    block.compile(dynamic=True)
        if not self.world.is_main:
            return self._loop(None)
        write_json(options.out / "config.json", self._description())
        with MetricsLog(
            options.out,
            resume_at=self.completed,
            total=self.total,
            tensorboard=options.tensorboard,
            progress=progress,
        ) as log:
            return self._loop(log)

    def _loop(self, log: MetricsLog | None) -> PriorRun:
        options = self.options
        clock, since = time.perf_counter(), 0
        for images in self.batches.run(self.completed, self.total):
            rate = self.learning_rate(self.completed)
            numbers = self._step(images, rate)
            self.completed += 1
            since += len(images)
            last = self.completed == self.total
            logged = self.completed % options.log_every == 0 or last or self.completed == 1
            if logged:
                speed = since * self.world.size / (time.perf_counter() - clock)
                self._write(log, numbers | {"learning_rate": rate, "images_per_second": speed})
            if len(self.held_out) and (self.completed % options.validate_every == 0 or last):
                self._write(log, self.trainer.validate(self._model_to_use(), self._validation()))
            if self.completed % options.checkpoint_every == 0 or last:
                self._save()
            if logged:
                clock, since = time.perf_counter(), 0
            if log is not None:
                log.advance(self.completed)
        rows = log.rows if log is not None else []
        return PriorRun(options.out, self._model_to_use().eval(), rows, self.codes.classes)

    def _step(self, images: Tensor, rate: float) -> dict[str, Any]:
        sequence, labels = self._batch(self.training[images])
        try:
            return self.trainer(sequence, labels, self.completed, rate)
        except NonFiniteLossError as error:
            path = self.options.out / "nonfinite.pt"
            state = capture(self.trainer, self.world, self.completed)
            if self.world.is_main:
                write_state(path, state | {"term": error.term, "images": self.training[images]})
            error.args = (f"{error.args[0]}; the batch and the state are in {path}",)
            raise

    def _batch(self, images: Tensor) -> tuple[CodeSequence, Tensor | None]:
        sequence, labels = self.codes.batch(images)
        chosen = labels.to(self.world.device) if self.codes.classes else None
        return sequence.to(self.world.device, non_blocking=True), chosen

    def _validation(self) -> Iterator[tuple[CodeSequence, Tensor | None]]:
        mean = max(1, int(self.codes.lengths.double().mean()))
        mine = self.held_out[self.world.rank :: self.world.size]
        for images in mine.split(max(1, self.options.token_budget // mean)):
            if len(images):
                yield self._batch(images)

    def _save(self) -> None:
        state = capture(self.trainer, self.world, self.completed)
        if self.world.is_main:
            self._model_to_use().save_pretrained(self.options.out / "model")
            keep_tokenizer(self.options)
            if self.codes.classes:
                write_json(self.options.out / "model" / "classes.json", list(self.codes.classes))
            write_state(self.checkpoint, state)
        self.world.barrier()

    def _model_to_use(self) -> Any:
        average = self.trainer.average
        return self.trainer.model if average is None else average.module

    def _write(self, log: MetricsLog | None, row: Row) -> None:
        if log is not None:
            log.write({"step": self.completed, **row})

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
        if before["codes"] != now["codes"]:
            raise ValueError("codes: they are not those that the run was started with")

    def _description(self) -> dict[str, Any]:
        model: Any = self.trainer.model
        return {
            "options": self.options.as_json(),
            "model": {"kind": type(model).__name__, **dataclasses.asdict(model.config)},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "codes": {
                "images": len(self.codes),
                "codes": len(self.codes.codes),
                "held_out": len(self.held_out),
                "tokenizer": self.codes.tokenizer,
                "classes": list(self.codes.classes),
            },
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


def new_prior(options: PriorTraining, codes: CachedCodes) -> Any:
    """A prior of the preset for these codes, with new weights.

    Raises:
        ValueError: There is no such preset.
    """
    kinds = {name: kind for kind in PRIORS.values() for name in kind.PRESETS}
    if options.preset not in kinds:
        nearest = difflib.get_close_matches(options.preset, kinds, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"preset: no prior is called {options.preset!r}; the nearest is {nearest!r} of {', '.join(kinds)}"
        )
    kind = kinds[options.preset]
    rows, columns = codes.region_grid
    longest = (rows * columns << 2 * (codes.num_granularities - 1)) + 2 * codes.num_granularities
    changes: dict[str, Any] = {
        "codebook_size": codes.codebook_size,
        "region_grid": codes.region_grid,
        "num_granularities": codes.num_granularities,
        "num_classes": len(codes.classes),
        "label_dropout": options.label_dropout,
        "max_steps": max(longest, kind.PRESETS[options.preset].max_steps),
        "tokenizer": codes.tokenizer,
    }
    if options.dropout is not None:
        changes["dropout"] = options.dropout
    model = kind.from_preset(options.preset, **changes)
    model.checkpoint_activations(options.checkpoint_activations)
    return model


def _split(codes: CachedCodes, share: float, seed: int, views: int) -> tuple[Tensor, Tensor]:
    """Training images, all their views, and held-out ones, only their first."""
    count = len(codes) // views
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = max(1, round(share * count)) if share else 0
    if held >= count:
        raise ValueError(f"validation_share: holding out {held} of {count} images leaves none to train on")
    training = order[held:].sort().values
    return torch.cat([training + view * count for view in range(views)]), order[:held].sort().values


def _check_folder(options: PriorTraining) -> None:
    if not options.resume and (options.out / "checkpoint.pt").is_file():
        raise ValueError(f"out: {options.out} holds a run already; resume it or choose another folder")


def _autocast(options: PriorTraining, device: torch.device) -> bool:
    if options.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return options.precision == "bfloat16"
