"""Train a prior: :class:`dqcore.training.prior.step.PriorStep` on packed codes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.backends import choose_autocast
from dqcore.codes import CodeSequence
from dqcore.data.codes import CachedCodes
from dqcore.data.token_batches import TokenBatches
from dqcore.distributed import World, join_world
from dqcore.errors import InputError
from dqcore.files import write_json
from dqcore.models.auto import PRIORS
from dqcore.training.average import WeightAverage
from dqcore.training.checkpoint import restore
from dqcore.training.log import Row
from dqcore.training.loop import Loop
from dqcore.training.prior.codes import keep_tokenizer, training_codes
from dqcore.training.prior.options import FREE_ON_RESUME, PriorTraining
from dqcore.training.prior.step import PriorStep
from dqcore.training.schedule import LearningRate
from dqcore.training.state import sole_owner

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
    with world.fork_rng():
        if not world.is_main:
            return _Run(options, world).train(None)
        with sole_owner(options.out):
            return _Run(options, world).train(progress)


class _Run(Loop):
    free_on_resume = FREE_ON_RESUME
    other_sources = "codes: they are not those"

    def __init__(self, options: PriorTraining, world: World) -> None:
        super().__init__(options, world)
        if world.is_main:
            self.check_folder()
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
            autocast=choose_autocast(options.precision, world.device),
            average=average,
        )
        self.training, self.held_out = _split(self.codes, options.validation_share, options.seed, options.views)
        lengths = self.codes.lengths[self.training] + getattr(model.tape, "num_specials", 1)
        self.token_batches = TokenBatches(
            lengths, options.token_budget, seed=options.seed, rank=world.rank, processes=world.size
        )
        epochs = 100.0 if options.epochs is None else options.epochs
        self.total = options.steps if options.steps is not None else max(1, self.token_batches.total(epochs))
        warmup = min(options.warmup_steps, self.total)
        self.learning_rate = LearningRate(options.learning_rate, warmup, self.total, options.schedule)

    def train(self, progress: Callable[[Row], object] | None) -> PriorRun:
        rows = self.run(progress)
        return PriorRun(self.options.out, self.model_to_use().eval(), rows, self.codes.classes)

    def start(self) -> None:
        options = self.options
        torch.manual_seed(options.seed + self.world.rank)
        if options.resume and self.checkpoint.is_file():
            self.check_same_run()
            self.completed, _ = restore(self.checkpoint, self.trainer, self.world)
        if options.compile:
            for part in self.trainer.model.children():
                for block in getattr(part, "blocks", []):
                    block.compile(dynamic=True)

    def batches(self) -> Iterable[Tensor]:
        return self.token_batches.run(self.completed, self.total)

    def step(self, batch: Tensor, rate: float) -> tuple[Row, int]:
        sequence, labels = self._batch(self.training[batch])
        return self.trainer(sequence, labels, self.completed, rate), len(batch) * self.world.size

    def validate(self) -> Row | None:
        return self.trainer.validate(self.model_to_use(), self._validation()) if len(self.held_out) else None

    def save_model(self) -> None:
        folder = self.options.out / "model"
        self.model_to_use().save_pretrained(folder)
        keep_tokenizer(self.options)
        if self.codes.classes:
            write_json(folder / "classes.json", list(self.codes.classes))

    def contents_of(self, batch: Tensor) -> Row:
        return {"images": self.training[batch]}

    def sources(self) -> Row:
        return {
            "codes": {
                "images": len(self.codes),
                "codes": len(self.codes.codes),
                "held_out": len(self.held_out),
                "tokenizer": self.codes.tokenizer,
                "classes": list(self.codes.classes),
            }
        }

    def about(self) -> Row:
        model: Any = self.trainer.model
        return {"model": {"kind": type(model).__name__, **dataclasses.asdict(model.config)}}

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


def new_prior(options: PriorTraining, codes: CachedCodes) -> Any:
    """A prior of the preset for these codes, with new weights.

    Raises:
        ValueError: There is no such preset.
    """
    kinds = {name: kind for kind in PRIORS.values() for name in kind.PRESETS}
    if options.preset not in kinds:
        nearest = difflib.get_close_matches(options.preset, kinds, n=1, cutoff=0.0)[0]
        raise InputError(
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
        raise InputError(f"validation_share: holding out {held} of {count} images leaves none to train on")
    training = order[held:].sort().values
    return torch.cat([training + view * count for view in range(views)]), order[:held].sort().values
