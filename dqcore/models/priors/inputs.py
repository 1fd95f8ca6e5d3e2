"""Checks of what users give to a prior: code sequences, class labels, given codes."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dqcore.backends import host_knows
from dqcore.codes import CodeSequence
from dqcore.errors import InputError, whole_at_least, whole_given
from dqcore.models.sampling.settings import Sampling
from dqcore.models.tape import BANNED, NULL, Tape

__all__ = [
    "check_given",
    "check_places",
    "check_sequence",
    "class_labels",
    "drop_labels",
    "given_contents",
    "labels_to_sample",
    "slots_to_use",
]


def check_sequence(
    sequence: CodeSequence, config: Any, device: torch.device | None = None, argument: str = "sequence"
) -> None:
    """Raise unless a prior with this config can read ``sequence``; the codes' range is checked on the CPU only.

    Args:
        sequence: What the user gave.
        config: The prior's config.
        device: The prior's device, which the sequence must have too; None where it is moved.
        argument: What it is called in messages.
    """
    if not isinstance(sequence, CodeSequence):
        hint = ": pass dqcore.pack_codes(codes, grain)"
        raise TypeError(f"{argument}: expected a CodeSequence, got {type(sequence).__name__}{hint}")
    if device is not None and sequence.device != device:
        raise InputError(f"{argument}: expected device {device}, as the model, got {sequence.device}: sequence.to(..)")
    if len(sequence) == 0:
        raise InputError(f"{argument}: expected at least one image")
    for name in ("region_grid", "num_granularities"):
        expected, got = getattr(config, name), getattr(sequence, name)
        if got != expected:
            raise InputError(f"{argument}: expected {name} {expected}, as the model's config, got {got}")
    if host_knows(sequence.codes) and len(sequence.codes):
        low, high = (int(value) for value in sequence.codes.aminmax())
        if low < 0 or high >= config.codebook_size:
            raise InputError(f"{argument}: expected codes in [0, {config.codebook_size}), got [{low}, {high}]")


def class_labels(
    labels: Tensor | None, batch_size: int, num_classes: int, device: torch.device, *, may_be_none: bool = False
) -> Tensor:
    """Check the labels of a batch.

    Args:
        labels: ``(batch_size,)`` integers in ``[-1, num_classes)``, or None.
        batch_size: Number of images.
        num_classes: Classes of the model. If it is 0, labels must be None, and all images get label 0.
        device: Device of the result.
        may_be_none: Whether a model that has classes takes None for "no image has a class".

    Returns:
        ``(batch_size,)`` int64, with :data:`dqcore.models.tape.NULL` in place of -1.
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
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an integer tensor, got {got}")
    if labels.shape != (batch_size,):
        raise InputError(f"labels: expected shape ({batch_size},), got {tuple(labels.shape)}")
    labels = labels.long()  # unsigned integers of more than 8 bits have no least and largest
    if host_knows(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high >= num_classes:
            raise InputError(f"labels: expected values in [-1, {num_classes}), got [{low}, {high}]")
    labels = labels.to(device)
    return torch.where(labels < 0, NULL, labels)


def drop_labels(labels: Tensor, share: float) -> Tensor:
    """Hide each label with probability ``share``."""
    return torch.where(torch.rand(len(labels), device=labels.device) < share, NULL, labels)


def labels_to_sample(
    labels: Tensor | int | None, batch_size: int, sampling: Sampling, config: Any, device: torch.device
) -> Tensor:
    """:func:`class_labels` for drawing ``batch_size`` samples; one number is the label of all of them.

    Raises:
        InputError: There is nothing to draw, the labels do not fit, or the model was not trained to be guided.
    """
    whole_given(1, batch_size=batch_size)
    if sampling.copies > 1 and not config.label_dropout:
        raise InputError(f"guidance: expected 1 for a model without label_dropout, got {sampling.guidance}")
    each = _for_each(labels, batch_size, config.num_classes)
    if sampling.copies > 1 and labels is None:
        raise InputError(f"guidance: expected 1 without labels to move towards, got {sampling.guidance}")
    return class_labels(each, batch_size, config.num_classes, device, may_be_none=config.label_dropout > 0)


def _for_each(labels: Any, batch_size: int, num_classes: int) -> Any:
    """Labels as they are, but one number as that of each sample."""
    if not _is_whole(labels):
        return labels
    if num_classes and not -1 <= labels < num_classes:
        raise InputError(f"labels: expected values in [-1, {num_classes}), got {labels}")
    return torch.full((batch_size,), int(labels) if num_classes else 0)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_places(seed: int, first: int) -> None:
    """Raise unless these can be the seed and the index of the first sample."""
    if not isinstance(seed, Integral):
        raise InputError(f"seed: expected an integer, got {seed!r}")
    if not isinstance(first, Integral) or not -(2**63) <= first < 2**63:
        raise InputError(f"first: expected an integer of 64 bits, got {first!r}")


def slots_to_use(slots: int | None, batch_size: int) -> int:
    """How many samples are drawn at once: as many as asked for, by default 128, and no more than there are.

    Raises:
        InputError: None at all.
    """
    whole_at_least(1, slots=slots)
    return min(batch_size, 128 if slots is None else slots)


def check_given(given: CodeSequence, batch_size: int, config: Any) -> None:
    """Raise unless ``given`` holds ``batch_size`` images that a prior with this config can complete."""
    check_sequence(given, config, argument="given")
    if len(given) != batch_size:
        raise InputError(f"given: expected {batch_size} images, got {len(given)}")


def given_contents(given: CodeSequence, tape: Tape) -> Tensor:
    """Given codes on the tape of their image, ``(B, L)`` int64, -1 elsewhere; ``given`` is on the tape's device.

    Raises:
        InputError: A region is covered in part, twice, or by codes of several granularities.
    """
    images = torch.arange(len(given), device=given.device).repeat_interleave(given.lengths.long())
    known = torch.full((len(given), len(tape)), -1, device=given.device)
    entries = tape.entries_of(given)
    known[images, entries] = given.codes
    region_entries, statuses = tape.rules[entries].unbind(-1)
    whole = (known[images[:, None], region_entries] >= 0) == (statuses > BANNED)
    if not bool(whole.all()) or int((known >= 0).sum()) != len(entries):
        raise InputError("given: expected whole regions, each once and with codes of one granularity")
    return known
