"""Counts and vector sums per code, ``s_k = sum of x_n with c_n = k``, always added in the same order; no float atomics.

The vectors are sorted by code, and those of equal codes keep their order. The sorted list is cut into runs of CHUNK.
First, one program a run and block of channels sums a run if all of it belongs to one code. Then, one program a code and
block of channels adds the sums of the code's whole runs and the vectors before and after them. So it takes no longer if
one code has all vectors. Vectors, in maps or packed, are read at most twice. Reference: ``dqcore.ops.code_sums``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.code_order import order_by_code
from dqcore.kernels.common import bound, cdiv, next_power_of_2, on_device
from dqcore.kernels.launch import launch
from dqcore.kernels.vectors import Vectors, block_of, row_of, starts

CHUNK = 128
TILE = {"BLOCK_N": 32, "BLOCK_D": 64, "num_warps": 4, "enable_fp_fusion": True}
RUNS = 2**14  # a batch of more than RUNS * CHUNK vectors has longer runs, so that their sums take little memory


@triton.jit
def _rows(
    where, position, inside, channel, height, width,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Vectors at these places of the sorted list, from ``channel`` on, ``(BLOCK_N, BLOCK_D)`` float32."""
    maps, strides, rows, places, regions, grain, order = where
    cell = tl.load(order + position, mask=inside, other=0)  # (BLOCK_N,)
    line, column = cell // width, cell % width
    granularity = tl.zeros_like(position).to(tl.int32)
    index = cell
    if grain is not None:
        region = (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1))
        granularity = tl.load(grain + region, mask=inside, other=0).to(tl.int32)  # (BLOCK_N,)
        if rows is not None:
            index = row_of(places, regions, region, line, column, G - 1 - granularity, inside, G)
    start, stride = starts(maps, strides, rows, index, granularity, line // height, line % height, column, G, D, ALIGN)
    return block_of(start, stride, inside, channel, D, BLOCK_D, ALIGN).to(tl.float32)


@triton.jit(do_not_specialize=["height", "width"])
def _code_sums_runs_kernel(
    where, sorted_codes, runs, height, width,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0).to(tl.int64)
    code = tl.load(sorted_codes + run * CHUNK)
    if (code < 0) | (code != tl.load(sorted_codes + run * CHUNK + CHUNK - 1)):
        return
    first_channel = tl.program_id(1) * BLOCK_D
    channel = first_channel + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, CHUNK, BLOCK_N):
        position = run * CHUNK + start + tl.arange(0, BLOCK_N)
        rows = _rows(where, position, position >= 0, first_channel, height, width, G, D, ALIGN, BLOCK_D)
        total += tl.sum(rows, 0)
    tl.store(runs + run * D + channel, total, mask=channel < D)  # (BLOCK_D,)


@triton.jit(do_not_specialize=["height", "width"])
def _code_sums_total_kernel(
    where, offsets, runs, sums, height, width,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    code = tl.program_id(0).to(tl.int64)
    first_channel = tl.program_id(1) * BLOCK_D
    channel = first_channel + tl.arange(0, BLOCK_D)
    first = tl.load(offsets + code)
    last = tl.load(offsets + code + 1)
    first_run = (first + CHUNK - 1) // CHUNK
    last_run = tl.maximum(last // CHUNK, first_run)
    head = tl.minimum(last, first_run * CHUNK)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(bound(first), bound(head), BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        rows = _rows(where, position, position < head, first_channel, height, width, G, D, ALIGN, BLOCK_D)
        total += tl.sum(rows, 0)
    for start in range(bound(first_run), bound(last_run), BLOCK_N):
        run = start + tl.arange(0, BLOCK_N)
        known = (run < last_run)[:, None] & (channel < D)[None, :]
        whole = tl.load(runs + run[:, None] * D + channel[None, :], mask=known, other=0.0)  # (BLOCK_N, BLOCK_D)
        total += tl.sum(whole, 0)
    tail = tl.maximum(head, last_run * CHUNK)
    for start in range(bound(tail), bound(last), BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        rows = _rows(where, position, position < last, first_channel, height, width, G, D, ALIGN, BLOCK_D)
        total += tl.sum(rows, 0)
    tl.store(sums + code * D + channel, total, mask=channel < D)  # (BLOCK_D,)


def code_sums_fwd(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """``x (N, D)`` or ``(B, D, H, W)`` with a code each, negative for none -> ``(K,)`` and ``(K, D)`` float32."""
    with on_device(x):
        return vector_sums(Vectors.of(x), None, codes.flatten().to(torch.int32), num_codes)


def vector_sums(
    batch: Vectors, grain: Tensor | None, keys: Tensor, num_codes: int, arrived: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for maps of several granularities.

    ``keys``, int32, one a cell of the finest grid, is the code at the first cell of each block and -1 elsewhere.
    ``arrived`` is a zero ``(1,)`` int32, if there is one at hand.
    """
    dim, height, width = batch.maps[-1].shape[1:]
    keys, order, offsets, counts = order_by_code(keys, num_codes, arrived)
    sums = torch.empty(num_codes, dim, dtype=torch.float32, device=keys.device)
    if sums.numel() == 0 or keys.numel() == 0:
        return counts, sums.zero_()
    chunk = max(CHUNK, next_power_of_2(keys.numel() // RUNS))
    number = keys.numel() // chunk
    runs = torch.empty(number, dim, dtype=torch.float32, device=keys.device)
    tile = TILE | {"BLOCK_D": min(TILE["BLOCK_D"], next_power_of_2(dim))}
    blocks = cdiv(dim, tile["BLOCK_D"])
    regions = 0 if grain is None else grain.numel()
    where = (batch.maps, batch.strides, batch.rows, batch.places, regions, grain, order)
    shared = {"G": len(batch.maps), "D": dim, "ALIGN": batch.packed, "CHUNK": chunk, **tile}
    if number:
        launch(_code_sums_runs_kernel, (number, blocks))(where, keys, runs, height, width, **shared)
    launch(_code_sums_total_kernel, (num_codes, blocks))(where, offsets, runs, sums, height, width, **shared)
    return counts, sums
