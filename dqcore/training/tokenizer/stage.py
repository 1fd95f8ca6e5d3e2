"""The first stage: a tokenizer learns to reconstruct images."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.batches import Batch
from dqcore.data.images import uint8_to_float
from dqcore.distributed import World
from dqcore.files import write_atomically
from dqcore.printing import one_line
from dqcore.training.log import Row
from dqcore.training.stage import all_finite
from dqcore.training.tokenizer.images import TrainingImages
from dqcore.training.tokenizer.options import TokenizerTraining
from dqcore.training.tokenizer.pictures import read_shown, show
from dqcore.training.tokenizer.step import TokenizerStep
from dqcore.training.tokenizer.tables import calibrate, can_calibrate, some_images
from dqcore.training.tokenizer.validation import validate

__all__ = ["TokenizerStage"]


@dataclass(frozen=True)
class TokenizerStage:
    """The first stage, as :class:`dqcore.training.stage.Stage` describes it.

    Attributes:
        options: The run's resolved options.
        world: All processes.
        images: Images for training and validation.
        step: The tokenizer's training step.
        broken: A message for each file that could not be read so far.
        pictured: What the pictures show.
    """

    options: TokenizerTraining
    world: World
    images: TrainingImages
    step: TokenizerStep
    broken: set[str] = field(default_factory=set)
    pictured: str = "reconstructions"

    @functools.cached_property
    def some_images(self) -> list[Tensor]:
        """:func:`dqcore.training.tokenizer.tables.some_images` of the training images; read once."""
        return some_images(self.step.model_to_use, self.images.training.paths)

    def batches(self, start: int, stop: int) -> Iterable[Batch]:
        """Crops of the training images."""
        return self.images.batches(start, stop)

    def train(self, batch: Batch, completed: int, learning_rate: float) -> tuple[Row, int]:
        """Train on the crops of a batch."""
        images = uint8_to_float(batch.images.to(self.world.device, non_blocking=True))
        numbers = self.step(images, completed, learning_rate)
        self.broken.update(batch.broken)
        return numbers, len(images) * self.world.size

    def status(self) -> Row:
        """Use of the codebook, and the number of broken files; ``broken_images.txt`` names them."""
        quantizer: Any = self.step.model.quantizer
        everyone = self._name_broken()
        usage, perplexity = float(quantizer.usage), float(quantizer.perplexity)
        return {"usage": usage, "perplexity": perplexity, "broken_images": len(everyone)}

    def _name_broken(self) -> list[str]:
        """The messages of all processes, which ``broken_images.txt`` lists."""
        everyone = sorted(set().union(*self.world.gather(sorted(self.broken))))
        if everyone and self.world.is_main:
            text = "".join(f"{one_line(reason)}\n" for reason in everyone)
            write_atomically(self.options.out / "broken_images.txt", lambda file: file.write(text.encode()))
        return everyone

    def validate(self) -> Row | None:
        """Quality of the reconstructions of held-out images, those that can be read."""
        if not len(self.images.validation):
            return None
        row = validate(self.step.model_to_use, self._readable(), self.world, self.step.perceptual)
        self._name_broken()
        return row

    def _readable(self) -> Iterator[Batch]:
        """Held-out images, one by one. One that stands in for a broken file is left out: it has a turn of its own."""
        for batch in self.images.validation_batches():
            self.broken.update(batch.broken)
            if not batch.broken:
                yield batch

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """While this is open, a gain router has its final thresholds; afterwards those that it trains with."""
        model = self.step.model_to_use
        if not can_calibrate(model):
            yield
            return
        before = copy.deepcopy(model.router.state_dict())
        calibrate(model, self.some_images)
        try:
            yield
        finally:
            model.router.load_state_dict(before)

    def picture(self) -> Tensor | None:
        """The first held-out photos, their reconstructions and their grain maps."""
        size, resize = self.options.image_size, self.options.resize
        assert size is not None and resize is not None, "options are resolved"
        photos = read_shown(self.images.validation.paths, size, max(size, resize))
        return None if photos is None else show(self.step.model_to_use, photos.to(self.world.device))

    def save_model(self, folder: Path) -> None:
        """Write the model."""
        if self.world.is_main:
            self.step.model_to_use.save_pretrained(folder)

    def contents_of(self, batch: Batch) -> Row:
        """The pixels of a batch, and the files of every process."""
        return {"files": self.world.gather(batch.paths), "images": batch.images}

    @torch.no_grad()
    def blame(self, batch: Batch) -> str:
        """The files of the batch whose crops alone give something that is not finite, or that all do."""
        model = self.step.model.eval()
        images = uint8_to_float(batch.images.to(self.world.device))

        def reconstruct(image: Tensor) -> Tensor:
            result: Tensor = model(image[None]).reconstruction
            return result

        pairs = zip(batch.paths, images, strict=True)
        bad = [path for path, image in pairs if not all_finite(functools.partial(reconstruct, image))]
        found = self.world.gather((bad, len(batch.paths)))
        files = [path for some, _ in found for path in some]
        if len(files) == sum(count for _, count in found):
            return "every image gives that, so the weights are to blame"
        if not files:
            return f"no image by itself gives that; the batch was {', '.join(batch.paths[:8])}"
        return f"it comes of {', '.join(files[:8])}"
