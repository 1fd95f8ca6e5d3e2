"""Arguments of the functions of a stream: an error names the argument, what was expected and what came instead."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError, at_least, whole_given
from dqcore.stream.tables import CodeTables

__all__ = [
    "check_identity",
    "check_reading",
    "check_tokenizer",
    "folder_of",
    "image_batches",
    "photo_size",
    "tables_among",
    "whole_numbers",
]


def whole_numbers(name: str, value: Tensor, *, dim: int | None = None, limit: int | None = None) -> Tensor:
    """A tensor of whole numbers of any kind as int64, on the CPU.

    Args:
        name: What the caller calls it.
        value: What the user gave.
        dim: The number of its dimensions; by default any.
        limit: Its values are at least 0 and below this; by default any.

    Raises:
        TypeError: It is no tensor.
        InputError: Another dtype or number of dimensions, no values, or one out of range.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype.is_floating_point or value.dtype.is_complex:
        raise InputError(f"{name}: expected integers, got {value.dtype}")
    if value.is_meta:
        raise InputError(f"{name}: expected a tensor with values, got one on the meta device")
    if dim is not None and (value.dim() != dim or value.numel() == 0):
        raise InputError(f"{name}: expected {dim} dimensions, none of them empty, got shape {tuple(value.shape)}")
    found = value.detach().cpu().long()
    if limit is not None:
        low, high = (int(bound) for bound in torch.aminmax(found))
        if low < 0 or high >= limit:
            raise InputError(f"{name}: expected integers in [0, {limit}), got values in [{low}, {high}]")
    return found


def check_identity(identity: str) -> None:
    """Raise :class:`InputError` unless this is a model's fingerprint."""
    if not isinstance(identity, str) or not re.fullmatch("[0-9a-f]{16,}", identity):
        raise InputError(f"identity: expected a fingerprint of at least 16 hexadecimal digits, got {identity!r}")


def photo_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a photo as two of Python's own numbers.

    Raises:
        InputError: They are not two whole numbers.
    """
    try:
        height, width = map(_whole, size)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"size: expected height and width in whole pixels, got {size!r}") from None
    return height, width


def _whole(number: Any) -> int:
    return int(number) if isinstance(number, float) and number.is_integer() else operator.index(number)


def tables_among(tables: CodeTables | Sequence[CodeTables]) -> Sequence[CodeTables]:
    """One model's tables, or all that its streams may have been written with, as a sequence.

    Raises:
        TypeError: They are none.
        InputError: There are none.
    """
    found = (tables,) if isinstance(tables, CodeTables) else tables
    if not isinstance(found, Sequence) or not all(isinstance(one, CodeTables) for one in found):
        raise TypeError(f"tables: expected CodeTables or a list of them, got {type(tables).__name__}")
    if not found:
        raise InputError("tables: expected at least one, got none")
    return found


def check_reading(preview: bool, max_pixels: int) -> None:
    """Raise :class:`InputError` unless these say what to read of a stream."""
    if not isinstance(preview, int):
        raise InputError(f"preview: expected True or False, got {preview!r}")
    if max_pixels is None:
        raise InputError("max_pixels: expected at least 1, got None")
    at_least(1, max_pixels=max_pixels)


def folder_of(folder: str | os.PathLike[str], codebook_size: int, num_granularities: int) -> Path:
    """The path of a model's folder.

    Raises:
        TypeError: It is none.
        InputError: The numbers of the model are not whole.
    """
    whole_given(1, codebook_size=codebook_size, num_granularities=num_granularities)
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder: expected a path, got {type(folder).__name__}")
    return Path(folder)


def check_tokenizer(model: object) -> None:
    """Raise ``TypeError`` unless this looks like a tokenizer."""
    if not all(hasattr(model, name) for name in ("quantizer", "config", "encode")):
        raise TypeError(f"model: expected a tokenizer, got {type(model).__name__}")


def image_batches(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same batches, each of which is a tensor.

    Raises:
        TypeError: They cannot be iterated, are a single tensor, or one of them is no tensor.
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        hint = "; pass [images]" if isinstance(batches, Tensor) else ""
        raise TypeError(f"batches: expected tensors (B, 3, H, W) in turn, got {type(batches).__name__}{hint}")
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise TypeError(f"batches: expected tensors (B, 3, H, W), got {type(batch).__name__}")
        yield batch
