"""The specification of ``add_rows``: look up, and add."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_rows_reference"]


def add_rows_reference(x: Tensor | None, tables: list[Tensor], indices: list[Tensor]) -> Tensor:
    """``x (R, D)`` or None, and a row of each table ``(N, D)`` by its indices ``(R,)``, to their sum ``(R, D)``."""
    for table, index in zip(tables, indices, strict=True):
        rows = F.embedding(index.clamp_max(len(table) - 1), table)
        x = rows if x is None else x + rows
    assert x is not None
    return x
