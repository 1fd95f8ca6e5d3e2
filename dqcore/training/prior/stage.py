"""The second stage: a prior learns the codes of images."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.codes import CachedCodes
from dqcore.data.token_batches import TokenBatches
from dqcore.distributed import World
from dqcore.files import write_json
from dqcore.training.log import Row
from dqcore.training.prior.codes import tokenizer_folder
from dqcore.training.prior.options import PriorTraining
from dqcore.training.prior.pictures import draw
from dqcore.training.prior.processes import whole_model
from dqcore.training.prior.step import PriorStep
from dqcore.training.stage import all_finite

__all__ = ["PriorStage"]


@dataclass(frozen=True)
class PriorStage:
    """The second stage, as :class:`dqcore.training.stage.Stage` describes it. A batch is the numbers of its images.

    Attributes:
        options: The run's options.
        world: All processes.
        codes: The codes of all images.
        training: Numbers of the images to train on, ``(n,)`` int64.
        held_out: Numbers of the images to validate with, ``(m,)`` int64.
        token_batches: Which of ``training`` make up the batch of a step.
        step: The prior's training step.
        broken: Always empty: codes were made of images that could be read.
        pictured: What the pictures show.
    """

    options: PriorTraining
    world: World
    codes: CachedCodes
    training: Tensor
    held_out: Tensor
    token_batches: TokenBatches
    step: PriorStep
    broken: set[str] = field(default_factory=set)
    pictured: str = "samples"

    @property
    def description(self) -> Row:
        """What ``config.json`` says of the codes; a resumed run must have the same."""
        return {
            "images": len(self.codes),
            "codes": len(self.codes.codes),
            "held_out": len(self.held_out),
            "tokenizer": self.codes.tokenizer,
            "classes": list(self.codes.classes),
        }

    def batches(self, start: int, stop: int) -> Iterator[Tensor]:
        """Images to train on, ``(b,)`` int64 a batch."""
        for chosen in self.token_batches.run(start, stop):
            yield self.training[chosen]

    def train(self, batch: Tensor, completed: int, learning_rate: float) -> tuple[Row, int]:
        """Train on the codes of a batch."""
        sequence, labels = self._codes_of(batch)
        return self.step(sequence, labels, completed, learning_rate), len(batch) * self.world.size

    def status(self) -> Row:
        """Nothing more than the step's numbers."""
        return {}

    def validate(self) -> Row | None:
        """The losses on held-out images."""
        if not len(self.held_out):
            return None
        return self.step.validate(self.step.model_to_use, self._validation_batches())

    def settled(self) -> AbstractContextManager[object]:
        """The end of training leaves a prior as it is."""
        return nullcontext()

    def picture(self) -> Tensor | None:
        """The same few samples each time; None without a tokenizer to decode them, or if the model is sharded.

        No other random number changes.
        """
        tokenizer = tokenizer_folder(self.options)
        if self.step.sharded or not tokenizer.is_dir():
            return None
        with self.world.fork_rng():
            return draw(self.step.model_to_use, tokenizer, self.options.seed)

    def save_model(self, folder: Path) -> None:
        """Write the model with the names of the classes; a tokenizer lies in ``model/`` since the start of the run."""
        model = self.finished_model()
        if not self.world.is_main:
            return
        model.save_pretrained(folder)
        if self.codes.classes:
            write_json(folder / "classes.json", list(self.codes.classes))

    def finished_model(self, *, everywhere: bool = False) -> Any:
        """The weights to use, in one piece: in the first process, or in all. Every process calls this."""
        model = self.step.model_to_use
        return whole_model(model, self.world, everywhere=everywhere) if self.step.sharded else model

    def contents_of(self, batch: Tensor) -> Row:
        """The numbers of the images of a batch, and their files."""
        return {"images": batch, "files": self._files(batch)}

    @torch.no_grad()
    def blame(self, batch: Tensor) -> str:
        """The files of the batch whose codes alone give a loss that is not finite, or that all do."""
        if self.step.sharded:
            return "of a sharded run the image to blame is not looked for"
        model = self.step.model.eval()

        def loss_of(image: Tensor) -> Tensor:
            loss: Tensor = model(*self._codes_of(image[None])).loss
            return loss

        bad = [image for image in batch if not all_finite(functools.partial(loss_of, image))]
        found = self.world.gather((self._files(bad), len(batch)))
        files = [path for some, _ in found for path in some]
        if len(files) == sum(count for _, count in found):
            return "every image gives that, so the weights are to blame"
        return f"it comes of {', '.join(files[:8])}" if files else "no image by itself gives that"

    def _files(self, images: Iterable[Tensor]) -> list[str]:
        """The files of some images, given by their numbers; the numbers, where the files are not known."""
        names = self.codes.names
        return [names[int(image) % len(names)] if names else f"image {int(image)}" for image in images]

    def _codes_of(self, images: Tensor) -> tuple[CodeSequence, Tensor | None]:
        """The codes of some images, and their labels if there are classes, on the run's device."""
        sequence, labels = self.codes.batch(images)
        chosen = labels.to(self.world.device) if self.codes.classes else None
        return sequence.to(self.world.device, non_blocking=True), chosen

    def _validation_batches(self) -> Iterator[tuple[CodeSequence, Tensor | None, int]]:
        """This process's part of the held-out images, in batches of about ``token_budget`` codes.

        With each comes the number of its images that count. All processes of a sharded run need the same number of
        batches; a process with fewer repeats an image that does not count.
        """
        mean = max(1, int(self.codes.lengths.double().mean()))
        mine = self.held_out[self.world.rank :: self.world.size]
        size = max(1, (self.options.token_budget or 0) // mean)
        batches = [images for images in mine.split(size) if len(images)]
        for images in batches:
            yield *self._codes_of(images), len(images)
        most = -(-len(self.held_out) // self.world.size)
        for _ in range(len(batches), -(-most // size) if self.step.sharded else 0):
            yield *self._codes_of(self.held_out[:1]), 0
