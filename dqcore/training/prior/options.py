"""Every option of a prior's training run."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dqcore.backends import Machine, choose_device, this_machine
from dqcore.data.preprocessing import CROPS, Preprocessing
from dqcore.distributed import TIMEOUT
from dqcore.errors import InputError
from dqcore.fields import check_fields
from dqcore.training.arguments import Arguments
from dqcore.training.prior.recipes import RECIPES

__all__ = ["FREE_ON_RESUME", "PriorTraining"]

log = logging.getLogger(__name__)

#: Options that may differ when a run is resumed: they say where and how it runs, not what it computes.
FREE_ON_RESUME = frozenset(
    {"codes", "data", "tokenizer", "out", "steps", "epochs", "minutes", "device", "compile", "checkpoint_activations"}
    | {"encode_batch", "log_every", "checkpoint_every", "checkpoint_minutes", "keep_every", "tensorboard", "resume"}
    | {"timeout", "shard"}
)


#: Bytes of GPU memory from which the paper's prior is the default: weights, gradients and AdamW's averages take 5 GB.
PAPER_MEMORY = 12 << 30


@dataclass(frozen=True)
class PriorTraining(Arguments):
    """Train a prior on a tokenizer's codes.

    Where a default is None, the recipe's value is used; what was chosen is logged and stands in the run's
    ``config.json``.
    """

    ADDED = Arguments.ADDED | {"recipe": "paper", "start": "random"}

    codes: Path | None = None
    """Folder that dqcore encode wrote. Or give data, and the codes are made now and kept in the run's folder."""
    tokenizer: Path | None = None
    """Saved tokenizer or its training run; a copy is kept beside the prior. Needed with data."""
    data: Path | None = None
    """Folder of images, searched recursively, .txt list of their paths, .tar or .zip file, LMDB database, or folder of
    such archives; instead of codes."""
    recipe: Literal["small", "photos", "paper"] | None = None
    """Network, crops and schedule. small: a network that a CPU trains in minutes; photos: that of the prior in the
    package; paper: the paper's, with 300 million parameters. By default paper on a GPU with 12 GiB or more, else
    small."""
    preset: str | None = None
    """Model preset; codebook, grid and granularities follow the codes."""
    out: Path = Path("runs/prior")
    """Folder of the run."""
    classes: bool = False
    """Train a class-conditional prior: the folder that an image lies in is its class, or the .cls file beside it in a
    shard."""

    image_size: int | None = None
    """With data: height and width of a crop in pixels."""
    resize: int | None = None
    """With data: pixels of the shorter side before cropping; by default image_size, or more in small."""
    preprocessing: Preprocessing | None = None
    """With data: cut the views as the paper does for this data set; instead of resize. By default a random square."""
    views: int | None = None
    """With data: crops of each training image; the first is the central one, the others are random and mirrored."""
    encode_batch: int = 16
    """With data: images that the tokenizer encodes together."""

    steps: int | None = None
    """Optimiser steps; instead of epochs."""
    epochs: float | None = None
    """Passes over the codes."""
    minutes: float | None = None
    """Length of the run by the clock, from its start; the learning rate falls with time. Instead of steps or epochs."""
    token_budget: int | None = None
    """Tokens that go through the network together, in each process; the paper's recipe holds about 30 images of 640
    codes."""
    accumulate: int = 1
    """Batches of a step, in each process, one after the other: for larger steps than the memory holds."""
    learning_rate: float | None = None
    """Learning rate after the warm-up, whatever the batch."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or a cosine that is 0 right after the last step."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 0.01
    """Weight decay of linear layers' weights; biases, normalizations and embeddings have none."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; where the recipe has none either, the gradient is left alone."""
    average_decay: float | None = None
    """Decay of a moving average of the weights, such as 0.999; the average is then what is saved."""
    dropout: float | None = None
    """Share of activations that dropout hides; by default the recipe's or the preset's, 0.1."""
    position_layers: int | None = None
    """Layers that positions are predicted with; by default the preset's."""
    content_layers: int | None = None
    """Layers that contents are predicted with; by default the preset's."""
    start: Literal["random", "codes"] | None = None
    """Initial embeddings: random, as the paper's; codes: after the tokenizer's codebook and the places of positions,
    which learns far sooner from few images. By default the recipe's: random in paper."""
    label_dropout: float = 0.0
    """With classes: share of labels hidden in training, which guidance in sampling needs; 0.1 is usual."""
    validation_share: float = 0.02
    """Share of the images held out for validation, at least 4 or a tenth if that is fewer; 0 for none."""

    seed: int = 0
    """Seed of the initial weights, the order of the images, their crops and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Auto is bfloat16 on a GPU or CPU that multiplies in it; losses are always float32."""
    compile: bool = False
    """Compile the transformers' blocks with torch.compile."""
    timeout: float = TIMEOUT
    """Under torchrun, seconds to wait for a process that does not answer before the run ends."""
    shard: bool = False
    """Under torchrun, keep only a part of weights, gradients and optimiser state in each process (FSDP2), and write
    checkpoints while the training goes on. A run may go on with another number of processes, or without this."""
    checkpoint_activations: bool = False
    """Keep only the blocks' inputs for the backward pass: less memory, a third more computing."""
    log_every: int = 50
    """Steps between two rows of metrics.jsonl; there is one after the first step and at least every 15 seconds."""
    validate_every: int | None = None
    """Steps between two validations; there is always one at the end."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end, and one when a signal stops the run."""
    checkpoint_minutes: float = 5.0
    """Minutes after which a checkpoint is written, however few steps there were."""
    keep_every: int | None = None
    """Steps between two models that are kept, in kept/STEPS, to see how a model learns; by default only the last is."""
    tensorboard: bool = False
    """Also write TensorBoard events."""
    resume: bool = False
    """Continue the run in out from its last checkpoint, to the same numbers as without the break. On the command line
    the options are those that the run was started with; name an option to change it."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.codes is not None and self.data is not None:
            raise InputError("codes: expected either codes or data")
        if self.data is not None and self.tokenizer is None:
            raise InputError("tokenizer: expected one to encode data with")
        self._only_one("steps", "epochs", "minutes")
        self._only_one("preprocessing", "resize")
        self._at_least(1, "image_size", "resize", "views", "encode_batch", "token_budget", "accumulate")
        for name in ("position_layers", "content_layers"):
            self._require(name, "a number from 1 to 1000", lambda value: 1 <= value <= 1000)
        self._at_least(1, "log_every", "validate_every", "checkpoint_every", "keep_every")
        self._more_than_0("steps", "epochs", "minutes", "gradient_clip", "learning_rate")
        self._more_than_0("checkpoint_minutes", "timeout")
        self._at_least(0, "weight_decay", "warmup_steps", "seed")
        self._below_1("dropout", "label_dropout", "validation_share", "average_decay")
        if self.codes is not None and (self.views or 1) > 1:
            raise InputError(f"views: expected 1, codes are not made anew for further crops, got {self.views}")
        if self._never_random and (self.views or 1) > 1:
            raise InputError(f"views: expected 1, {self.preprocessing} has no random crops, got {self.views}")
        if self.label_dropout and not self.classes:
            raise InputError("label_dropout: expected 0 without classes")

    @property
    def _never_random(self) -> bool:
        """Whether the data set's crops are always the middle square."""
        return self.preprocessing is not None and CROPS[self.preprocessing] == "center"

    @classmethod
    def small(cls, data: Path, tokenizer: Path, out: Path = Path("runs/prior"), **changes: Any) -> PriorTraining:
        """Options of recipe ``small``: a network that two CPU cores train in a minute or two.

        Args:
            data: Folder of images, searched recursively, or a ``.txt`` list of their paths.
            tokenizer: Saved tokenizer or its training run.
            out: Folder of the run.
            **changes: Any other options, such as ``minutes=4`` or ``steps=500``; by default 250 steps.
        """
        return cls(**{"recipe": "small", "data": data, "tokenizer": tokenizer, "out": out, **changes})

    def resolved(self, machine: Machine | None = None) -> PriorTraining:
        """The same options with a value for each that was left open, from the recipe.

        Args:
            machine: Decides the recipe; by default the one this runs on, with the GPU that ``device`` names.

        Raises:
            ValueError: There are neither ``codes`` nor ``data``.
        """
        if self.codes is None and self.data is None:
            raise InputError("codes: expected either codes or data")
        for name in ("image_size", "resize", "preprocessing"):
            if self.codes is not None and getattr(self, name) is not None and not self.resume:
                log.warning("%s changes nothing: %s holds codes that are made already", name, self.codes)
        machine = this_machine(choose_device(self.device)) if machine is None else machine
        name = self.recipe or ("paper" if machine.gpu_memory >= PAPER_MEMORY else "small")
        filled = dataclasses.asdict(RECIPES[name])
        taken = {field for field in filled if getattr(self, field) is not None}
        if self.epochs is not None or self.minutes is not None or self.steps is not None:
            taken |= {"steps", "epochs"}
        if self.image_size is not None or self.preprocessing is not None:
            taken.add("resize")
        if self.codes is not None or self._never_random:
            filled["views"] = 1
        filled = {field: value for field, value in filled.items() if field not in taken}
        return dataclasses.replace(self, **filled, recipe=name)
