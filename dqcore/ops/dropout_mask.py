"""``dropout_mask``: which attention weights survive, a function of (seed, offset, head, row, column) and nothing else.

:mod:`dqcore.ops.reference.dropout_mask` says which random bits decide; the Triton kernels of attention compute the
same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.errors import InputError, at_least
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.reference.dropout_mask import dropout_mask_reference

__all__ = ["check_seed", "draw_seed", "dropout_mask", "keep_of"]


def dropout_mask(seed: Tensor, num_heads: int, num_rows: int, num_columns: int, dropout_p: float) -> Tensor:
    """Which weights :func:`dqcore.ops.varlen_attention` keeps, ``byte(seed, offset, h, r, c) < 256 (1 - p)``.

    Args:
        seed: ``(seed, offset)``, int64, shape ``(2,)``. Only the low 32 bits of the offset are used.
        num_heads: Query heads, H.
        num_rows: T, the number of packed queries of the whole batch.
        num_columns: S, the number of keys; column j is key j of the query's own sequence.
        dropout_p: Probability that a weight is dropped, rounded to a multiple of 1/256.

    Returns:
        ``(H, T, S)`` bool, True where the weight survives.

    Raises:
        TypeError: ``seed`` has the wrong type or dtype.
        ValueError: It has another shape, a number is negative, or the probability leaves nothing.

    Gradient: none. Deterministic, and equal on every device.
    Cost: about 50 integer operations for each 16 weights.
    """
    check_seed("seed", seed)
    at_least(0, num_heads=num_heads, num_rows=num_rows, num_columns=num_columns)
    rows = torch.arange(num_rows, device=seed.device)
    return dropout_mask_reference(seed, num_heads, rows, num_columns, keep_of(dropout_p))


def check_seed(name: str, seed: Tensor, **beside: Tensor) -> None:
    """Raise unless ``seed`` is ``(seed, offset)``, on the device of the tensor beside it."""
    check_tensor(name, seed, dim=1, dtypes=(torch.int64,))
    check_same_device(**beside, **{name: seed})
    if seed.shape[0] != 2:
        raise InputError(f"{name}: expected two values, (seed, offset), got shape {tuple(seed.shape)}")


def keep_of(dropout_p: float) -> int:
    """How many of the 256 values of a byte keep a weight; raises if none would."""
    keep = round(256 * (1 - dropout_p)) if 0 <= dropout_p <= 1 else 0
    if keep == 0:
        raise InputError(f"dropout_p: expected a probability in [0, 255/256], got {dropout_p}")
    return keep


def draw_seed(device: torch.device, *shape: int) -> Tensor:
    """New ``(seed, offset)``, ``(*shape, 2)``, from the device's default generator; the host does not wait for it."""
    return torch.randint(-(2**63), 2**63 - 1, (*shape, 2), device=device)
