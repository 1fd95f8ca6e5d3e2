"""What users give to a prior, checked: codes, and class labels, which shift a start token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.models.tape import NULL

__all__ = ["check_sequence", "class_labels", "drop_labels"]


def check_sequence(sequence: CodeSequence, config: Any) -> None:
    """Raise unless a prior with this config can read ``sequence``; codes are looked at on the CPU only."""
    if not isinstance(sequence, CodeSequence):
        raise TypeError(f"sequence: expected a CodeSequence, got {type(sequence).__name__}")
    if len(sequence) == 0:
        raise InputError("sequence: expected at least one image")
    for name in ("region_grid", "num_granularities"):
        expected, got = getattr(config, name), getattr(sequence, name)
        if got != expected:
            raise InputError(f"sequence: expected {name} {expected}, as the model's config, got {got}")
    if sequence.device.type == "cpu" and not torch.compiler.is_compiling() and len(sequence.codes):
        low, high = (int(value) for value in sequence.codes.aminmax())
        if low < 0 or high >= config.codebook_size:
            raise InputError(f"sequence: expected codes in [0, {config.codebook_size}), got [{low}, {high}]")


def class_labels(
    labels: Tensor | None, batch_size: int, num_classes: int, device: torch.device, *, may_be_none: bool = False
) -> Tensor:
    """Labels of a batch, checked, with :data:`dqcore.models.tape.NULL` for -1; ``(batch_size,)`` int64.

    Args:
        labels: ``(batch_size,)`` integers in ``[-1, num_classes)``, or None.
        batch_size: Images.
        num_classes: Classes of the model; with 0 labels must be None, and all images get label 0.
        device: Where the result is to lie.
        may_be_none: None stands for no class, in a model that has classes.
    """
    if num_classes == 0:
        if labels is not None:
            raise InputError("labels: expected None, the model has no classes")
        return torch.zeros(batch_size, dtype=torch.int64, device=device)
    if labels is None:
        if not may_be_none:
            raise InputError(f"labels: expected one in [0, {num_classes}) for each image, got None")
        return torch.full((batch_size,), NULL, device=device)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected an integer tensor, got {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != (batch_size,):
        raise InputError(f"labels: expected shape ({batch_size},), got {tuple(labels.shape)}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high >= num_classes:
            raise InputError(f"labels: expected values in [-1, {num_classes}), got [{low}, {high}]")
    labels = labels.to(device, torch.int64)
    return torch.where(labels < 0, NULL, labels)


def drop_labels(labels: Tensor, share: float) -> Tensor:
    """Hide each label with probability ``share``."""
    return torch.where(torch.rand(len(labels), device=labels.device) < share, NULL, labels)
