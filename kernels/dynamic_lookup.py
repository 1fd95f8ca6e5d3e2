"""Multi-granularity lookup: only the codes that exist are searched, each map read where it lies.

One launch lists the regions of every granularity (their order in the list changes nothing that is written). Then, for
each granularity, the search of ``dqcore.kernels.nearest_code`` walks over the cells of its regions and leaves each code
at the first cell of its block; and one program a run of codes fills the blocks: code map, quantized map and error. The
backward pass is one launch a granularity, one program a tile of cells and channels, each written once and so always
the same. Tiles are (channels, cells), since cells lie side by side in memory. Reference: ``dqcore.ops.dynamic_lookup``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.code_sums import code_sums_fwd
from dqcore.kernels.common import on_device, place
from dqcore.kernels.nearest_code import prepare, search

TILE = {"BLOCK_N": 32, "BLOCK_D": 16, "num_warps": 4}


@triton.jit
def _list_regions_kernel(grain, regions, counts, N, row, G: tl.constexpr, BLOCK_N: tl.constexpr):
    """Append the regions of granularity g to row g of ``regions``, and their number to row g of ``counts (G, 4)``."""
    region = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    own = tl.load(grain + region, mask=region < N, other=-1)
    for g in tl.static_range(G):
        mine = (own == g).to(tl.int32)
        first = tl.atomic_add(counts + 4 * g, tl.sum(mine, 0))
        tl.store(regions + g * row + first + tl.cumsum(mine, 0) - 1, region, mask=own == g)


@triton.jit
def _clear_kernel(
    grain, codes, quantized, error, height, width, D: tl.constexpr, SIDE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write what a region without a code holds; one program a region, and most have nothing to do."""
    region = tl.program_id(0).to(tl.int64)
    if tl.load(grain + region) >= 0:
        return
    cell = tl.arange(0, SIDE * SIDE)
    columns = width // SIDE
    line = region // columns
    image = line // (height // SIDE)
    at = ((line % (height // SIDE)) * SIDE + cell // SIDE) * width + (region % columns) * SIDE + cell % SIDE
    tl.store(codes + image * height * width + at, tl.full([SIDE * SIDE], -1, tl.int64))
    tl.store(error + image * height * width + at, tl.zeros([SIDE * SIDE], tl.float32))
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        where = quantized + (image * D + d[:, None]) * (height * width) + at[None, :]
        zero = tl.zeros([BLOCK_D, SIDE * SIDE], quantized.dtype.element_ty)
        tl.store(where, zero, mask=(d < D)[:, None] & (cell >= 0)[None, :])


@triton.jit
def _fill_blocks_kernel(
    x,
    codebook,
    codes,
    quantized,
    error,
    regions,
    count,
    height,
    width,
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    stride_k,
    stride_e,
    SPREAD: tl.constexpr,
    SIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    N = tl.load(count) * (SIDE * SIDE)
    if first >= N:
        return
    token = first + tl.arange(0, BLOCK_N)
    inside = token < N
    image, row, column = place(tl.where(inside, token, 0), regions, height, width, SIDE)
    start = x + image * stride_b + row * stride_h + column * stride_w
    area = (height * SPREAD).to(tl.int64) * (width * SPREAD)
    at = row * SPREAD * (width * SPREAD) + column * SPREAD
    code = tl.load(codes + image * area + at, mask=inside, other=0)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first_channel in range(0, D, BLOCK_D):
        d = (first_channel + tl.arange(0, BLOCK_D)).to(tl.int64)
        where = (d < D)[:, None] & inside[None, :]
        vector = tl.load(start[None, :] + d[:, None] * stride_d, mask=where, other=0.0).to(tl.float32)
        value = tl.load(codebook + code[None, :] * stride_k + d[:, None] * stride_e, mask=where, other=0.0).to(
            tl.float32
        )
        difference = vector - value
        total += tl.sum(difference * difference, 0)
        out = quantized + (image[None, :] * D + d[:, None]) * area + at[None, :]
        for i in tl.static_range(SPREAD * SPREAD):
            cell = (i // SPREAD) * (width * SPREAD) + i % SPREAD
            tl.store(out + cell, value.to(quantized.dtype.element_ty), mask=where)
    for i in tl.static_range(SPREAD * SPREAD):
        cell = image * area + at + (i // SPREAD) * (width * SPREAD) + i % SPREAD
        tl.store(codes + cell, code, mask=inside)
        tl.store(error + cell, total / (SPREAD * SPREAD), mask=inside)


@triton.jit
def _lookup_backward_kernel(
    x,
    grain,
    quantized,
    grad_quantized,
    grad_error,
    grad,
    N,
    D,
    height,
    width,
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    quantized_b,
    quantized_d,
    quantized_h,
    quantized_w,
    grad_b,
    grad_d,
    grad_h,
    grad_w,
    error_b,
    error_h,
    error_w,
    out_b,
    out_d,
    out_h,
    out_w,
    GRANULARITY: tl.constexpr,
    SPREAD: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    image, row, column = place(token, None, height, width, 1)
    region = (image * (height // SIDE) + row // SIDE) * (width // SIDE) + column // SIDE
    mine = (token < N) & (tl.load(grain + region, mask=token < N, other=-1) == GRANULARITY)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    where = (d < D)[:, None] & mine[None, :]
    total = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    if grad_quantized is not None:
        first = grad_quantized + image * grad_b + row * SPREAD * grad_h + column * SPREAD * grad_w
        for i in tl.static_range(SPREAD * SPREAD):
            start = first + (i // SPREAD) * grad_h + (i % SPREAD) * grad_w
            total += tl.load(start[None, :] + d[:, None] * grad_d, mask=where, other=0.0).to(tl.float32)
    if grad_error is not None:
        scale = tl.zeros([BLOCK_N], tl.float32)
        first = grad_error + image * error_b + row * SPREAD * error_h + column * SPREAD * error_w
        for i in tl.static_range(SPREAD * SPREAD):
            scale += tl.load(first + (i // SPREAD) * error_h + (i % SPREAD) * error_w, mask=mine, other=0.0).to(
                tl.float32
            )
        start = x + image * stride_b + row * stride_h + column * stride_w
        vector = tl.load(start[None, :] + d[:, None] * stride_d, mask=where, other=0.0).to(tl.float32)
        start = quantized + image * quantized_b + row * SPREAD * quantized_h + column * SPREAD * quantized_w
        value = tl.load(start[None, :] + d[:, None] * quantized_d, mask=where, other=0.0).to(tl.float32)
        total += (vector - value) * (scale * (2 / (SPREAD * SPREAD)))[None, :]
    out = grad + image * out_b + row * out_h + column * out_w
    everywhere = (d < D)[:, None] & (token < N)[None, :]
    tl.store(out[None, :] + d[:, None] * out_d, total.to(grad.dtype.element_ty), mask=everywhere)


def dynamic_lookup_fwd(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Code map ``(B, H, W)`` int64, quantized map, error ``(B, H, W)`` float32, counts ``(K,)``, sums ``(K, D)``.

    A granularity of -1 marks a region without a code. Without ``with_sums`` the last two are empty.
    """
    finest, size = maps[-1], codebook.shape[0]
    batch, dim, height, width = finest.shape
    codes = torch.empty(batch, height, width, dtype=torch.int64, device=finest.device)
    quantized = torch.empty(finest.shape, dtype=finest.dtype, device=finest.device)
    error = torch.empty(batch, height, width, dtype=torch.float32, device=finest.device)
    counts, sums = error.new_zeros(size if with_sums else 0), error.new_zeros((size, dim) if with_sums else 0)
    if codes.numel() == 0:
        return codes, quantized, error, counts, sums
    grain = grain.contiguous()
    with on_device(finest):
        regions, found = _list_regions(grain, len(maps))
        _clear_kernel[(grain.numel(),)](
            grain, codes, quantized, error, height, width, D=dim, SIDE=2 ** (len(maps) - 1), BLOCK_D=64, num_warps=4
        )
        prepared = prepare(finest, codebook)
        for g, x in enumerate(maps):
            search(x, prepared, "exact", codes, regions=regions[g], count=found[g], side=2**g)
            _fill_blocks_kernel[(triton.cdiv(x.numel() // dim, TILE["BLOCK_N"]),)](
                *(x, codebook, codes, quantized, error, regions[g], found[g]),
                *(x.shape[2], x.shape[3], *x.stride(), *codebook.stride()),
                SPREAD=width // x.shape[3],
                SIDE=2**g,
                D=dim,
                **TILE,
            )
    if with_sums:
        for g, x in enumerate(maps):
            own = _codes_of(codes, grain, g, width // x.shape[3])
            more_counts, more_sums = code_sums_fwd(x, own, size)
            counts, sums = counts + more_counts, sums + more_sums
    return codes, quantized, error, counts, sums


def dynamic_lookup_bwd(
    maps: list[Tensor], grain: Tensor, quantized: Tensor, grad_quantized: Tensor | None, grad_error: Tensor | None
) -> list[Tensor]:
    """The gradient of each map; ``quantized`` is the forward's, either gradient may be None."""
    grain = grain.contiguous()
    grads = [torch.empty_like(x) for x in maps]
    for g, (x, grad) in enumerate(zip(maps, grads, strict=True)):
        batch, dim, height, width = x.shape
        tokens = batch * height * width
        if grad.numel() == 0:
            continue
        with on_device(x):
            _lookup_backward_kernel[(triton.cdiv(tokens, TILE["BLOCK_N"]), triton.cdiv(dim, TILE["BLOCK_D"]))](
                *(x, grain, quantized, grad_quantized, grad_error, grad),
                *(tokens, dim, height, width),
                *(*x.stride(), *quantized.stride()),
                *((0,) * 4 if grad_quantized is None else grad_quantized.stride()),
                *((0,) * 3 if grad_error is None else grad_error.stride()),
                *grad.stride(),
                GRANULARITY=g,
                SPREAD=quantized.shape[3] // width,
                SIDE=2**g,
                **TILE,
            )
    return grads


def _list_regions(grain: Tensor, num_granularities: int) -> tuple[Tensor, Tensor]:
    """Lists of the regions of each granularity, and their lengths; rows begin at multiples of 16 bytes."""
    total = grain.numel()
    regions = torch.empty(num_granularities, -(-total // 4) * 4, dtype=torch.int32, device=grain.device)
    counts = torch.zeros(num_granularities, 4, dtype=torch.int32, device=grain.device)
    _list_regions_kernel[(triton.cdiv(total, 256),)](
        grain, regions, counts, total, regions.shape[1], G=num_granularities, BLOCK_N=256, num_warps=4
    )
    return regions, counts


def _codes_of(codes: Tensor, grain: Tensor, granularity: int, spread: int) -> Tensor:
    """The codes of one granularity on its own grid, -1 elsewhere."""
    side = 2**granularity
    blocks = codes[:, ::spread, ::spread].unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return torch.where(grain[:, :, None, :, None] == granularity, blocks, -1).flatten(3, 4).flatten(1, 2)
