"""Every option of a prior's training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dqcore.errors import InputError
from dqcore.training.arguments import Arguments

__all__ = ["FREE_ON_RESUME", "PriorTraining"]

#: Options that may differ when a run is resumed: they say where and how it runs, not what it computes.
FREE_ON_RESUME = frozenset(
    {"codes", "data", "tokenizer", "out", "steps", "epochs", "device", "compile", "checkpoint_activations"}
    | {"encode_batch", "log_every", "checkpoint_every", "tensorboard", "resume"}
)


@dataclass(frozen=True)
class PriorTraining(Arguments):
    """Train a prior on a tokenizer's codes. The defaults are the paper's."""

    codes: Path | None = None
    """Folder that dqcore encode wrote. Or give data, and the codes are made now and kept in the run's folder."""
    tokenizer: Path | None = None
    """Saved tokenizer or its training run; a copy is kept beside the prior. Needed with data."""
    data: Path | None = None
    """Folder of images, searched recursively, or a .txt list of their paths; instead of codes."""
    preset: str = "dqtransformer-base"
    """Model preset; codebook, grid and granularities follow the codes."""
    out: Path = Path("runs/prior")
    """Folder of the run."""
    classes: bool = False
    """Train a class-conditional prior: the folder that an image lies in is its class."""

    image_size: int = 256
    """With data: height and width of a crop in pixels."""
    resize: int | None = None
    """With data: pixels of the shorter side before cropping; by default image_size."""
    views: int = 1
    """With data: crops of each training image; the first is the central one, the others are random and mirrored."""
    encode_batch: int = 16
    """With data: images that the tokenizer encodes together."""

    steps: int | None = None
    """Optimiser steps; instead of epochs."""
    epochs: float | None = None
    """Passes over the codes; 100 by default."""
    token_budget: int = 20_000
    """Tokens in a step, in each process; the default holds about 30 images of 640 codes."""
    learning_rate: float = 5e-4
    """Learning rate after the warm-up, whatever the batch."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or a cosine down to 0 at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 0.01
    """Weight decay of linear layers' weights; biases, normalizations and embeddings have none."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None leaves it alone, as in the paper."""
    average_decay: float | None = None
    """Decay of a moving average of the weights, such as 0.999; the average is then what is saved. None: no average."""
    dropout: float | None = None
    """Share of activations that dropout hides; by default the preset's, 0.1."""
    label_dropout: float = 0.0
    """With classes: share of labels hidden in training, which guidance in sampling needs; 0.1 is usual."""
    validation_share: float = 0.02
    """Share of the images held out for validation, at least one; 0 for none."""

    seed: int = 0
    """Seed of the initial weights, the order of the images, their crops and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Auto is bfloat16 on a GPU that has it; losses are always float32."""
    compile: bool = False
    """Compile the transformers' blocks with torch.compile."""
    checkpoint_activations: bool = False
    """Keep only the blocks' inputs for the backward pass: less memory, a third more computing."""
    log_every: int = 50
    """Steps between two rows of metrics.jsonl."""
    validate_every: int = 2000
    """Steps between two validations; there is always one at the end."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end."""
    tensorboard: bool = False
    """Also write TensorBoard events."""
    resume: bool = False
    """Continue the run in out from its last checkpoint, to the same numbers as without the break."""

    def __post_init__(self) -> None:
        if (self.codes is None) == (self.data is None):
            raise InputError("codes: expected either codes or data")
        if self.data is not None and self.tokenizer is None:
            raise InputError("tokenizer: expected one to encode data with")
        self._not_both("steps", "epochs")
        self._at_least(1, "image_size", "views", "encode_batch", "token_budget")
        self._at_least(1, "log_every", "validate_every", "checkpoint_every")
        self._more_than_0("steps", "epochs", "gradient_clip", "learning_rate")
        self._at_least(0, "weight_decay", "warmup_steps", "seed")
        self._below_1("dropout", "label_dropout", "validation_share", "average_decay")
        if self.label_dropout and not self.classes:
            raise InputError("label_dropout: expected 0 without classes")
