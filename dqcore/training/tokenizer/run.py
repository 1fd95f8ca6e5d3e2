"""Train a tokenizer: :class:`dqcore.training.tokenizer.step.TokenizerStep` on images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dqcore.data.batches import Batch
from dqcore.data.images import uint8_to_float
from dqcore.distributed import World, join_world
from dqcore.files import write_atomically
from dqcore.training.checkpoint import restore
from dqcore.training.log import Row
from dqcore.training.loop import Loop
from dqcore.training.state import sole_owner
from dqcore.training.tokenizer.build import (
    check_image_size,
    compile_networks,
    fit_router,
    new_model,
    new_schedule,
    new_trainer,
)
from dqcore.training.tokenizer.images import find_images
from dqcore.training.tokenizer.options import FREE_ON_RESUME, TokenizerTraining
from dqcore.training.tokenizer.validation import validate

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
    with world.fork_rng():
        torch.manual_seed(options.seed)
        return _Run(options, world, model).train(progress)


class _Run(Loop):
    free_on_resume = FREE_ON_RESUME
    other_sources = "data: the folder's files are not those"

    def __init__(self, options: TokenizerTraining, world: World, model: nn.Module | None) -> None:
        super().__init__(options, world)
        self.check_folder()
        self.images = find_images(options, world)
        model = new_model(options) if model is None else model
        check_image_size(options, model)
        self.trainer = new_trainer(options, world, model)
        self.total, self.learning_rate = new_schedule(options, self.images.steps_per_epoch, world)

    def train(self, progress: Callable[[Row], object] | None) -> TokenizerRun:
        with sole_owner(self.options.out) if self.world.is_main else contextlib.nullcontext():
            rows = self.run(progress)
        return TokenizerRun(self.options.out, self.model_to_use().eval(), rows)

    def start(self) -> None:
        options = self.options
        if options.resume and self.checkpoint.is_file():
            self.check_same_run()
            self.completed, broken = restore(self.checkpoint, self.trainer, self.world)
            self.broken.update(broken)
        else:
            fit_router(options, self.trainer, self.images)
            torch.manual_seed(options.seed + self.world.rank)
        if options.compile:
            compile_networks(self.trainer.model)

    def batches(self) -> Iterable[Batch]:
        return self.images.batches(self.completed, self.total)

    def step(self, batch: Batch, rate: float) -> tuple[Row, int]:
        images = uint8_to_float(batch.images.to(self.world.device, non_blocking=True))
        numbers = self.trainer(images, self.completed, rate)
        self.broken.update(batch.broken)
        return numbers, len(images) * self.world.size

    def state(self) -> Row:
        """The codebook's use, and the broken files met so far, which are named in a file."""
        quantizer: Any = self.trainer.model.quantizer
        everyone = sorted(set().union(*self.world.gather(sorted(self.broken))))
        if everyone and self.world.is_main:
            text = "".join(f"{reason}\n" for reason in everyone)
            write_atomically(self.options.out / "broken_images.txt", lambda file: file.write(text.encode()))
        usage, perplexity = float(quantizer.usage), float(quantizer.perplexity)
        return {"usage": usage, "perplexity": perplexity, "broken_images": len(everyone)}

    def validate(self) -> Row | None:
        if not len(self.images.validation):
            return None
        return validate(self.model_to_use(), self.images.validation_batches(), self.world, self.trainer.perceptual)

    def save_model(self) -> None:
        self.model_to_use().save_pretrained(self.options.out / "model")

    def contents_of(self, batch: Batch) -> Row:
        return {"files": self.world.gather(batch.paths), "images": batch.images}

    def sources(self) -> Row:
        return {
            "data": {
                "training": len(self.images.training),
                "validation": len(self.images.validation),
                "fingerprint": self.images.fingerprint,
            }
        }

    def about(self) -> Row:
        config = getattr(self.trainer.model, "config", None)
        known = dataclasses.is_dataclass(config)
        return {
            "model": dataclasses.asdict(config) if known else type(self.trainer.model).__name__,  # type: ignore[arg-type]
            "steps_per_epoch": self.images.steps_per_epoch,
        }
