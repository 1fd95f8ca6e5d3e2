"""Vectors of tokens: a row of each of a few tables, added up. A program has a block of one token's channels.

Each sum is rounded to the tables' dtype, as PyTorch's are, so that the bits are the same.
Reference: ``dqcore.ops.add_rows``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import narrow, on_device, widen

LARGEST_BLOCK = 1024


@triton.jit(do_not_specialize=["D"])
def _add_rows_kernel(x, tables, indices, out, D, BLOCK: tl.constexpr):
    token, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if x is not None:
        total = tl.load(x[0] + token * x[1] + d, mask=d < D)  # (BLOCK,)
    for i in tl.static_range(len(tables)):
        table, rows = tables[i]
        place, stride = indices[i]
        row = tl.minimum(tl.maximum(tl.load(place + token * stride), 0), rows - 1).to(tl.int64)
        vector = tl.load(table + row * D + d, mask=d < D)  # (BLOCK,)
        if (x is None) and (i == 0):  # noqa: SIM108 - Triton takes no such expression
            total = vector
        else:
            total = narrow(widen(total) + widen(vector), out.dtype.element_ty)
    tl.store(out + token * D + d, total, mask=d < D)


def add_rows_fwd(x: Tensor | None, tables: list[Tensor], indices: list[Tensor]) -> Tensor:
    """``x (R, D)`` or nothing, plus rows ``(R,)`` of each table ``(N, D)`` -> ``(R, D)``."""
    rows, dim = len(indices[0]), tables[0].shape[1]
    out = tables[0].new_empty(rows, dim)
    block = min(max(128, triton.next_power_of_2(dim)), LARGEST_BLOCK)
    if out.numel():
        with on_device(out):
            _add_rows_kernel[(rows, triton.cdiv(dim, block))](
                None if x is None else (x, x.stride(0)),
                tuple((table, len(table)) for table in tables),
                tuple((index, index.stride(0)) for index in indices),
                *(out, dim),
                BLOCK=block,
                num_warps=max(block // 256, 1),
                enable_fp_fusion=True,
            )
    return out
