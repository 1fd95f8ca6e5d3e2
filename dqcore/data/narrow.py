"""Whole numbers in fewer bits, for a file or for the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.dynamic_lookup import MAX_GRANULARITIES

__all__ = ["narrow_maps", "narrowed"]


def narrowed(values: Tensor, dtype: torch.dtype, limit: int | None = None, *, name: str) -> Tensor:
    """The same numbers as another dtype, on the CPU; a plain cast would wrap those that do not fit.

    Args:
        values: Whole numbers of any shape.
        dtype: Of the result, such as int32 or uint8.
        limit: What they stay below; by default what ``dtype`` can hold.
        name: What the caller calls them.

    Raises:
        InputError: A number is not whole, negative, or as large as the limit.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{name}: expected whole numbers, got {values.dtype}")
    limit = torch.iinfo(dtype).max + 1 if limit is None else limit
    values = values.cpu()  # here, so that a GPU is waited for once and not for each bound
    low, high = (int(value) for value in values.aminmax()) if values.numel() else (0, 0)
    if low < 0 or high >= limit:
        raise InputError(f"{name}: expected values in [0, {limit}), got [{low}, {high}]")
    return values.to(dtype).contiguous()


def narrow_maps(codes: Tensor, grain: Tensor) -> tuple[Tensor, Tensor]:
    """A code map ``(H, W)`` as int32, and its grain map ``(h, w)`` as uint8.

    Raises:
        InputError: See :func:`narrowed`; or a map is none.
    """
    for name, values in (("codes", codes), ("grain", grain)):
        if values.dim() != 2:
            raise InputError(f"{name}: expected the map of one image, got shape {tuple(values.shape)}")
    return narrowed(codes, torch.int32, name="codes"), narrowed(grain, torch.uint8, MAX_GRANULARITIES, name="grain")
