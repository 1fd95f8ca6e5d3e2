"""A product of few rows with a weight, its bias and exact GELU, in one launch. Reference: ``dqcore.ops.linear_gelu``.

A program has some columns of the result and multiplies all channels. The weight is read once for every tile of rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, cdiv, multiplicand, narrow, on_device, widen
from dqcore.kernels.launch import launch

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}


@triton.jit(do_not_specialize=["M"])
def _linear_gelu_kernel(
    x, weight, bias, out, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels = tl.arange(0, BLOCK_K)
    left = x + rows[:, None] * K + channels[None, :]
    right = weight + columns.to(tl.int64)[None, :] * K + channels[:, None]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, bound(K), BLOCK_K):
        real = channels < K - start
        a = tl.load(left + start, mask=(rows < M)[:, None] & real[None, :], other=0.0)
        b = tl.load(right + start, mask=(columns < N)[None, :] & real[:, None], other=0.0)
        sums = tl.dot(multiplicand(a), multiplicand(b), sums)
    sums += widen(tl.load(bias + columns, mask=columns < N, other=0.0))[None, :]
    active = 0.5 * sums * (1.0 + tl.erf(sums * 0.7071067811865476))
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(out + at, narrow(active, out.dtype.element_ty), mask=inside)


def linear_gelu_fwd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x (M, K)``, ``weight (N, K)`` and ``bias (N,)`` of one half-precision dtype -> ``(M, N)``."""
    rows, (columns, channels) = len(x), weight.shape
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    if rows:
        grid = (cdiv(columns, TILE["BLOCK_N"]), cdiv(rows, TILE["BLOCK_M"]))
        tensors = (x.contiguous(), weight.contiguous(), bias.contiguous(), out)
        with on_device(x):
            launch(_linear_gelu_kernel, grid)(*tensors, rows, columns, channels, **TILE, enable_fp_fusion=True)
    return out
