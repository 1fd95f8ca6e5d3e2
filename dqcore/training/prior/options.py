"""Every option of a prior's training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dqcore.errors import InputError

#: Options that may differ when a run is resumed: they say where and how it runs, not what it computes.
FREE_ON_RESUME = frozenset(
    {"codes", "data", "tokenizer", "out", "steps", "epochs", "device", "compile", "checkpoint_activations"}
    | {"encode_batch", "log_every", "checkpoint_every", "tensorboard", "resume"}
)


@dataclass(frozen=True)
class PriorTraining:
    """Train a prior on a tokenizer's codes. The defaults are the paper's."""

    codes: Path | None = None
    """Folder that dqcore encode wrote. Or give data, and the codes are made now and kept in the run's folder."""
    tokenizer: Path | None = None
    """Saved tokenizer or its training run; kept beside the prior. Needed with data."""
    data: Path | None = None
    """Folder of images, searched recursively, or a .txt list of their paths; instead of codes."""
    preset: str = "dqtransformer-base"
    """Model preset; codebook, grid and granularities follow the codes."""
    out: Path = Path("runs/prior")
    """Folder of the run."""
    classes: bool = False
    """The folder an image lies in is its class."""

    image_size: int = 256
    """With data: height and width of a crop in pixels."""
    resize: int | None = None
    """With data: pixels of the shorter side before cropping; by default image_size."""
    views: int = 1
    """With data: crops of each training image; the first is the central one, the others are random and mirrored."""
    encode_batch: int = 16
    """With data: images that go through the tokenizer together."""

    steps: int | None = None
    """Optimiser steps; instead of epochs."""
    epochs: float | None = None
    """Passes over the codes; 100 by default."""
    token_budget: int = 20_000
    """Tokens of a step, in each process: about 30 images of 640 codes."""
    learning_rate: float = 5e-4
    """Learning rate at the start, whatever the batch."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or a cosine down to 0 at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 0.01
    """Of the weights of linear layers; biases, normalizations and embeddings have none."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None leaves it alone, as in the paper."""
    average_decay: float | None = None
    """Decay of a moving average of the weights, which is then what is saved for use; None keeps none."""
    dropout: float | None = None
    """By default the preset's, 0.1."""
    label_dropout: float = 0.0
    """With classes: share of labels hidden, so that sampling can be guided; 0.1 is usual."""
    validation_share: float = 0.02
    """Share of the images held out for validation, at least one; 0 for none."""

    seed: int = 0
    """Decides the initial weights, the order of the images, their crops and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Auto is bfloat16 on a GPU that has it; losses are always float32."""
    compile: bool = False
    """Compile the transformers' blocks with torch.compile."""
    checkpoint_activations: bool = False
    """Keep only the blocks' inputs for the backward pass: less memory for a third more work."""
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
        if self.steps is not None and self.epochs is not None:
            raise InputError("steps: give either steps or epochs, not both")
        counts = ("image_size", "views", "encode_batch", "token_budget")
        for name in (*counts, "log_every", "validate_every", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "epochs", "gradient_clip"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "more than 0")
        self._require("learning_rate", self.learning_rate > 0, "more than 0")
        for name in ("weight_decay", "warmup_steps", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("dropout", "label_dropout", "validation_share", "average_decay"):
            value = getattr(self, name)
            self._require(name, value is None or 0 <= value < 1, "a number in [0, 1)")
        if self.label_dropout and not self.classes:
            raise InputError("label_dropout: expected 0 without classes")

    def as_json(self) -> dict[str, Any]:
        """The options as plain values."""
        return {n: str(v) if isinstance(v, Path) else v for n, v in dataclasses.asdict(self).items()}

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"{name}: expected {expected}, got {getattr(self, name)}")
