"""What all priors have in common: the fields of their configs, and what their forward passes return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dqcore.drawing import line
from dqcore.errors import InputError, at_least
from dqcore.fields import check_fields

__all__ = ["PriorConfig", "PriorOutput", "Targets"]


@dataclass(frozen=True)
class PriorConfig:
    """The fields that all priors have; the defaults are the paper's."""

    codebook_size: int = 1024  # K of the tokenizer
    region_grid: tuple[int, int] = (16, 16)  # regions (h, w) of an image
    num_granularities: int = 2  # G of the tokenizer
    dim: int = 1024
    num_heads: int = 16  # the released configs have 8
    num_classes: int = 0  # 0: unconditional
    max_steps: int = 2048  # rows of the step embedding; at least the tokens of the longest image
    dropout: float = 0.1  # of embeddings, attention weights, projections and MLPs
    label_dropout: float = 0.0  # share of labels hidden in training, so that sampling can be guided
    tokenizer: str = ""  # fingerprint of the tokenizer that made the codes; empty if it is not known

    def __post_init__(self) -> None:
        check_fields(self)
        self._at_least_1("codebook_size", "num_granularities", "dim", "num_heads", "max_steps")
        if min(self.region_grid) < 1:
            raise InputError(f"region_grid: expected (rows, columns), at least (1, 1), got {self.region_grid}")
        if self.dim % self.num_heads:
            raise InputError(f"num_heads: expected a divisor of dim {self.dim}, got {self.num_heads}")
        at_least(0, num_classes=self.num_classes)
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: expected a probability in [0, 1), got {getattr(self, name)}")
        if self.label_dropout and not self.num_classes:
            raise InputError(f"label_dropout: expected 0 without classes, got {self.label_dropout}")

    def _at_least_1(self, *names: str) -> None:
        at_least(1, **{name: getattr(self, name) for name in names})

    @property
    def num_labels(self) -> int:
        """Number of start tokens to choose from: one for each class, or one in all."""
        return max(1, self.num_classes)


class Targets(NamedTuple):
    """What a packed pass predicts, each ``(N,)`` int64: contents, columns of the position head, granularities."""

    contents: Tensor
    columns: Tensor
    grains: Tensor


class PriorOutput(NamedTuple):
    """What a prior's forward pass returns; ``N`` tokens are predicted, one image after the other.

    Attributes:
        loss: ``content_loss + position_loss``, scalar.
        content_loss: Mean cross-entropy of contents, nats.
        position_loss: Cross-entropy of positions, nats: in a coarse-to-fine prior the mean over granularities of their
            means, in raster order the mean over all; 0 where a prior has no positions to predict.
        content_logits: ``(N, contents)``.
        position_logits: ``(N, columns)``, or None.
        targets: What was predicted.
        content_losses: Cross-entropy of each content, nats, float32, ``(N,)``.
        position_losses: Cross-entropy of each position, nats, float32, ``(N,)``, or None.
    """

    loss: Tensor
    content_loss: Tensor
    position_loss: Tensor
    content_logits: Tensor
    position_logits: Tensor | None
    targets: Targets
    content_losses: Tensor
    position_losses: Tensor | None

    def __repr__(self) -> str:
        logits = {"content_logits": self.content_logits, "position_logits": self.position_logits}
        losses = {"content_loss": self.content_loss, "position_loss": self.position_loss}
        return line("PriorOutput", loss=self.loss, **losses, **logits)
