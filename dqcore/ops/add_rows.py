"""``add_rows``: vectors of tokens as sums of embeddings, in one launch.

Gradient: none; it is for sampling. Determinism: the bits of PyTorch's sums, on every device.
Cost: on a GPU one launch, which reads a row of each table and writes their sum. Tables of several dtypes, or not
contiguous, take the reference.
"""

from __future__ import annotations

from torch import Tensor

from dqcore.ops.reference.add_rows import add_rows_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["add_rows"]


def add_rows(x: Tensor | None, tables: list[Tensor], indices: list[Tensor]) -> Tensor:
    """``x + tables[0][indices[0]] + tables[1][indices[1]] + ..``, added from left to right.

    For a prior's steps, which do not check its arguments.

    Args:
        x: ``(R, D)`` floating; None for nothing.
        tables: One or more tables ``(N, D)``.
        indices: For each table its rows, ``(R,)`` integers of any stride, 0 or more; larger ones read the last row.

    Returns:
        ``(R, D)``.
    """
    out: Tensor = _op.overload(x, tables, indices)
    return out


def _fake(x: Tensor | None, tables: list[Tensor], indices: list[Tensor]) -> Tensor:
    return tables[0].new_empty(len(indices[0]), tables[0].shape[1])


def _triton(x: Tensor | None, tables: list[Tensor], indices: list[Tensor]) -> Tensor:
    from dqcore.kernels.add_rows import add_rows_fwd

    rows = tables if x is None else [x, *tables]
    plain = all(table.dtype == rows[0].dtype and table.stride(1) == 1 for table in rows)
    whole = all(table.is_contiguous() for table in tables)
    return (add_rows_fwd if plain and whole else add_rows_reference)(x, tables, indices)


_op = register("add_rows", add_rows_reference, fake=_fake, gpu=Implementation(_triton, "triton"))
