"""Dropout of attention weights in place on the CPU: the extension's random bytes, or the reference's without it."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore import backends
from dqcore.ops.extension import call, native
from dqcore.ops.reference.dropout_mask import COLUMNS, dropout_mask_reference

__all__ = ["COLUMNS", "drop_weights"]


def drop_weights(weights: Tensor, seed: Tensor, first_row: int, first_column: int, keep: int) -> None:
    """Set to 0 the weights that :func:`dqcore.ops.dropout_mask` drops.

    Args:
        weights: Of packed rows and keys of one sequence, ``(H, rows, columns)`` float32, contiguous.
        seed: ``(seed, offset)``.
        first_row: The packed row that comes first.
        first_column: The key that comes first, a multiple of COLUMNS.
        keep: How many of the 256 values of a byte keep a weight.
    """
    heads, rows, columns = weights.shape
    if backends.available("extension", weights.device):
        part = native().Dropout(*seed.tolist(), keep, heads, first_row, rows, first_column, columns)
        call("dropout_mask", weights.device, part, weights.data_ptr())
    else:
        packed = torch.arange(first_row, first_row + rows, device=weights.device)
        weights *= dropout_mask_reference(seed, heads, packed, first_column + columns, keep)[..., first_column:]
