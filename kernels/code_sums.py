"""Counts and vector sums per code, ``s_k = sum of x_n with c_n = k``, always added in the same order; no float atomics.

The vectors are sorted by code, stably. First, one program a run of CHUNK sorted vectors and block of channels sums the
run if it belongs to one code. Then, one program a code and block of channels adds the sums of its whole runs
and the vectors at its ends: so a code that takes everything costs no more time than many. Vectors are read where
they lie, each twice at most. Reference: ``dqcore.ops.code_sums``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common
from dqcore.kernels.common import bound, on_device
from dqcore.kernels.tokens import Tokens, starts

CHUNK = 128
TILE = {"BLOCK_N": 32, "BLOCK_D": 64, "num_warps": 4}
RUNS = 2**14  # a longer batch has longer runs, so that their sums stay small


@triton.jit
def _rows(maps, strides, grain, order, position, inside, channel, D, height, width, G: tl.constexpr):
    """Vectors at these sorted positions, ``(positions, channels)`` float32."""
    cell = tl.load(order + position, mask=inside, other=0)
    line, column = cell // width, cell % width
    own = tl.zeros_like(position).to(tl.int32)
    if G > 1:
        own = tl.load(grain + (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1)), mask=inside, other=0)
    start, stride = starts(maps, strides, own, line // height, line % height, column, G)
    where = inside[:, None] & (channel < D)[None, :]
    return tl.load(start[:, None] + channel[None, :] * stride[:, None], mask=where, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["height", "width"])
def _run_sums_kernel(
    maps,
    strides,
    grain,
    order,
    sorted_codes,
    runs,
    D,
    height,
    width,
    G: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    run = tl.program_id(0).to(tl.int64)
    code = tl.load(sorted_codes + run * CHUNK)
    if (code < 0) | (code != tl.load(sorted_codes + run * CHUNK + CHUNK - 1)):
        return
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, CHUNK, BLOCK_N):
        position = run * CHUNK + start + tl.arange(0, BLOCK_N)
        rows = _rows(maps, strides, grain, order, position, position >= 0, channel, D, height, width, G)
        total += tl.sum(rows, 0)
    tl.store(runs + run * D + channel, total, mask=channel < D)


@triton.jit(do_not_specialize=["height", "width"])
def _code_sums_kernel(
    maps,
    strides,
    grain,
    order,
    offsets,
    runs,
    sums,
    D,
    height,
    width,
    G: tl.constexpr,
    CHUNK: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    code = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.load(offsets + code)
    last = tl.load(offsets + code + 1)
    first_run = (first + CHUNK - 1) // CHUNK
    last_run = tl.maximum(last // CHUNK, first_run)
    head = tl.minimum(last, first_run * CHUNK)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(bound(first, INTERPRETED), bound(head, INTERPRETED), BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        rows = _rows(maps, strides, grain, order, position, position < head, channel, D, height, width, G)
        total += tl.sum(rows, 0)
    for start in range(bound(first_run, INTERPRETED), bound(last_run, INTERPRETED), BLOCK_N):
        run = start + tl.arange(0, BLOCK_N)
        where = (run < last_run)[:, None] & (channel < D)[None, :]
        total += tl.sum(tl.load(runs + run[:, None] * D + channel[None, :], mask=where, other=0.0), 0)
    tail = tl.maximum(head, last_run * CHUNK)
    for start in range(bound(tail, INTERPRETED), bound(last, INTERPRETED), BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        rows = _rows(maps, strides, grain, order, position, position < last, channel, D, height, width, G)
        total += tl.sum(rows, 0)
    tl.store(sums + code * D + channel, total, mask=channel < D)


def code_sums_fwd(x: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """``x (N, D)`` or ``(B, D, H, W)`` with a code each, negative for none -> ``(K,)`` and ``(K, D)`` float32."""
    with on_device(x):
        return token_sums(Tokens.of(x), None, codes.flatten().to(torch.int32), num_codes)


def token_sums(tokens: Tokens, grain: Tensor | None, keys: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """The same over maps of several granularities, ``keys`` being the code at the first cell of each block, or -1."""
    dim, height, width = tokens.maps[-1].shape[1:]
    keys, order = keys.sort(stable=True)
    offsets = torch.searchsorted(keys, torch.arange(num_codes + 1, dtype=torch.int32, device=keys.device))
    counts = offsets.diff().to(torch.float32)
    sums = torch.zeros(num_codes, dim, dtype=torch.float32, device=keys.device)
    if sums.numel() == 0 or keys.numel() == 0:
        return counts, sums
    chunk = max(CHUNK, triton.next_power_of_2(keys.numel() // RUNS))
    whole = keys.numel() // chunk
    runs = torch.empty(whole, dim, dtype=torch.float32, device=keys.device)
    blocks = triton.cdiv(dim, TILE["BLOCK_D"])
    where = (tokens.maps, tokens.strides, grain, order)
    shape = (dim, height, width)
    shared = {"G": len(tokens.maps), "CHUNK": chunk, **TILE}
    if whole:
        _run_sums_kernel[(whole, blocks)](*where, keys, runs, *shape, **shared)
    _code_sums_kernel[(num_codes, blocks)](
        *where, offsets, runs, sums, *shape, INTERPRETED=common.INTERPRETED, **shared
    )
    return counts, sums
