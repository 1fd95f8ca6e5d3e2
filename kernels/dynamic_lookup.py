"""Multi-granularity lookup: only the codes that exist are searched, each vector read where it lies in its own map.

One launch lists the vectors of all granularities. ``nearest_code`` searches the list at once and leaves each code at
the first cell of its block. Then one program a run of cells of the finest grid writes code map, quantized map and
error, every cell once. The backward pass is one launch a granularity; a program writes one tile of channels and cells
of that map's gradient, every cell once, so the result is the same in every run. Tiles are (channels, cells), since
neighbouring cells lie side by side in memory. Reference: ``dqcore.ops.dynamic_lookup``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.code_sums import vector_sums
from dqcore.kernels.common import on_device, widen
from dqcore.kernels.nearest_code import search
from dqcore.kernels.vectors import Vectors, block_of, row_of, starts

TILE = {"BLOCK_N": 32, "BLOCK_D": 16, "num_warps": 4, "enable_fp_fusion": True}
FILL = {"BLOCK_N": 64, "BLOCK_D": 64, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["N", "height", "width", "regions"])
def _dynamic_lookup_fill_kernel(
    where, grain, codebook, out, N, height, width, area, regions,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Spread each code over its block. Cells without a code (granularity out of range, or code -1) get -1 and 0.

    ``keys`` gets each code once, at the first cell of its block, and -1 elsewhere.

    Args:
        where: Maps, their strides, packed rows and their places.
        grain: The grain map.
        codebook: ``(K, D)`` with its strides.
        out: Codes (read and written), quantized map, error, keys or None.
        N: Number of cells.
        height: Of the finest grid.
        width: Of the finest grid.
        area: Cells of one image.
        regions: Number of regions.
        G: Number of granularities.
        D: Number of channels.
        ALIGN: As of :func:`starts`.
        LAST: Whether the quantized map is channels-last.
        WHOLE: Whether all cells of a program belong to one image.
        BLOCK_N: Cells of a program.
        BLOCK_D: Channels that it writes at once.
    """
    maps, strides, rows, places = where
    start_e, stride_k, stride_e = codebook
    codes, quantized, error, keys = out
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    cell = begin + tl.arange(0, BLOCK_N)
    inside = cell < N
    line, column = cell // width, cell % width
    image, row = line // height, line % height
    region = (line >> (G - 1)) * (width >> (G - 1)) + (column >> (G - 1))
    granularity = tl.load(grain + region, mask=inside, other=-1).to(tl.int32)  # (BLOCK_N,)
    coded = (granularity >= 0) & (granularity < G)
    halvings = tl.where(coded, G - 1 - granularity, 0)  # the block is 2^halvings cells wide
    first = (line >> halvings << halvings) * width + (column >> halvings << halvings)
    code = tl.load(codes + first, mask=coded, other=-1)  # (BLOCK_N,)
    index = first
    if rows is not None:
        index = row_of(places, regions, region, line, column, halvings, coded, G)
    coded &= code >= 0
    start, stride = starts(maps, strides, rows, index, granularity, image, row, column, G, D, ALIGN)
    if LAST:
        to = quantized + cell * D
    elif WHOLE:  # so the compiler sees that cells lie side by side
        to = quantized + (begin // area * D * area + begin % area) + tl.arange(0, BLOCK_N)
    else:
        to = quantized + image * D * area + (row * width + column)
    total = tl.zeros([BLOCK_N], tl.float32)
    for channel in range(0, D, BLOCK_D):
        d = (channel + tl.arange(0, BLOCK_D)).to(tl.int64)
        known = coded[:, None] & (d < D)[None, :]
        from_code = start_e + code[:, None] * stride_k + d[None, :] * stride_e
        value = widen(tl.load(from_code, mask=known, other=0.0))  # (BLOCK_N, BLOCK_D)
        difference = widen(block_of(start, stride, coded, channel, D, BLOCK_D, ALIGN)) - value
        total += tl.sum(difference * difference, 1)
        value = value.to(quantized.dtype.element_ty)
        if LAST:
            tl.store(to[:, None] + d[None, :], value, mask=inside[:, None] & (d < D)[None, :])  # (BLOCK_N, BLOCK_D)
        else:
            here = (d < D)[:, None] & inside[None, :]
            tl.store(to[None, :] + d[:, None] * area, tl.trans(value), mask=here)  # (BLOCK_D, BLOCK_N)
    share = tl.full([BLOCK_N], 1, tl.int32) << (2 * halvings)
    tl.store(error + cell, total / share.to(tl.float32), mask=inside)  # (BLOCK_N,), as are the next two
    tl.store(codes + cell, code, mask=inside)
    if keys is not None:
        tl.store(keys + cell, tl.where(cell == first, code, -1).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["N", "height", "width"])
def _dynamic_lookup_bwd_kernel(
    x, grain, codes, quantized, grad_quantized, grad_error, grad, N, D, height, width,
    GRANULARITY: tl.constexpr, SPREAD: tl.constexpr, SIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of the map of one granularity, whose cells are SPREAD cells wide on the finest grid."""
    vector_index = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = vector_index < N
    line, column = vector_index // width, vector_index % width
    image, row = line // height, line % height
    region = (image * (height // SIDE) + row // SIDE) * (width // SIDE) + column // SIDE
    mine = inside & (tl.load(grain + region, mask=inside, other=-1) == GRANULARITY)  # (BLOCK_N,)
    first_cell = (line * SPREAD * width + column) * SPREAD  # on the finest grid
    mine &= tl.load(codes + first_cell, mask=mine, other=-1) >= 0
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    where = (d < D)[:, None] & mine[None, :]
    total = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    if grad_quantized is not None:
        first, stride_b, stride_d, stride_h, stride_w = grad_quantized
        first += image * stride_b + row * SPREAD * stride_h + column * SPREAD * stride_w
        for i in range(SPREAD):  # unrolled, its addresses would not fit the registers
            for j in tl.static_range(SPREAD):
                start = first + i * stride_h + j * stride_w
                part = tl.load(start[None, :] + d[:, None] * stride_d, mask=where, other=0.0)  # (BLOCK_D, BLOCK_N)
                total += part.to(tl.float32)
    if grad_error is not None:
        scale = tl.zeros([BLOCK_N], tl.float32)
        first, stride_b, stride_h, stride_w = grad_error
        first += image * stride_b + row * SPREAD * stride_h + column * SPREAD * stride_w
        for i in range(SPREAD):
            for j in tl.static_range(SPREAD):
                start = first + i * stride_h + j * stride_w
                scale += tl.load(start, mask=mine, other=0.0).to(tl.float32)  # (BLOCK_N,)
        start, stride_b, stride_d, stride_h, stride_w = x
        start += image * stride_b + row * stride_h + column * stride_w
        vector = tl.load(start[None, :] + d[:, None] * stride_d, mask=where, other=0.0)  # (BLOCK_D, BLOCK_N)
        start, stride_b, stride_d, stride_h, stride_w = quantized
        start += image * stride_b + row * SPREAD * stride_h + column * SPREAD * stride_w
        value = tl.load(start[None, :] + d[:, None] * stride_d, mask=where, other=0.0)  # (BLOCK_D, BLOCK_N)
        total += (vector.to(tl.float32) - value.to(tl.float32)) * (scale * (2 / (SPREAD * SPREAD)))[None, :]
    start, stride_b, stride_d, stride_h, stride_w = grad
    to = start + image * stride_b + row * stride_h + column * stride_w
    everywhere = (d < D)[:, None] & inside[None, :]
    result = total.to(start.dtype.element_ty)
    tl.store(to[None, :] + d[:, None] * stride_d, result, mask=everywhere)  # (BLOCK_D, BLOCK_N)


def dynamic_lookup_fwd(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Code map ``(B, H, W)`` int64, quantized map, error ``(B, H, W)`` float32, counts ``(K,)``, sums ``(K, D)``.

    A granularity out of range, as -1, marks a region without a code. Without ``with_sums`` the last two are empty.
    """
    finest, size = maps[-1], codebook.shape[0]
    images, dim, height, width = finest.shape
    codes = torch.empty(images, height, width, dtype=torch.int64, device=finest.device)
    last = is_channels_last(finest)
    memory = torch.channels_last if last else torch.contiguous_format
    quantized = torch.empty(finest.shape, dtype=finest.dtype, device=finest.device, memory_format=memory)
    error = torch.empty(images, height, width, dtype=torch.float32, device=finest.device)
    counts, sums = error.new_zeros(size if with_sums else 0), error.new_zeros((size, dim) if with_sums else 0)
    if codes.numel() == 0:
        return codes, quantized, error, counts, sums
    grain = grain.contiguous()
    with on_device(finest):
        batch = Vectors.listed(maps, grain)
        keys = torch.empty(codes.numel(), dtype=torch.int32, device=finest.device) if with_sums else None
        search(batch, codebook, "exact", codes)
        _dynamic_lookup_fill_kernel[(triton.cdiv(codes.numel(), FILL["BLOCK_N"]),)](
            *((batch.maps, batch.strides, batch.rows, batch.places), grain, (codebook, *codebook.stride())),
            *((codes, quantized, error, keys), codes.numel(), height, width, height * width, grain.numel()),
            G=len(maps),
            D=dim,
            ALIGN=batch.packed,
            LAST=last,
            WHOLE=height * width % FILL["BLOCK_N"] == 0,
            **FILL,
        )
        if keys is not None:
            counts, sums = vector_sums(batch, grain, keys, size)
    return codes, quantized, error, counts, sums


def dynamic_lookup_bwd(
    maps: list[Tensor],
    grain: Tensor,
    codes: Tensor,
    quantized: Tensor,
    grad_quantized: Tensor | None,
    grad_error: Tensor | None,
) -> list[Tensor]:
    """The gradient of each map; ``codes`` and ``quantized`` are the forward's, either gradient may be None."""
    grain, codes = grain.contiguous(), codes.contiguous()
    grads = [torch.empty_like(x) for x in maps]
    for g, (x, grad) in enumerate(zip(maps, grads, strict=True)):
        batch, dim, height, width = x.shape
        vectors = batch * height * width
        if grad.numel() == 0:
            continue
        with on_device(x):
            _dynamic_lookup_bwd_kernel[(triton.cdiv(vectors, TILE["BLOCK_N"]), triton.cdiv(dim, TILE["BLOCK_D"]))](
                *(_strided(x), grain, codes, _strided(quantized), _strided(grad_quantized), _strided(grad_error)),
                *(_strided(grad), vectors, dim, height, width),
                GRANULARITY=g,
                SPREAD=quantized.shape[3] // width,
                SIDE=2**g,
                **TILE,
            )
    return grads


def is_channels_last(x: Tensor) -> bool:
    """Whether channels lie side by side in memory and cells do not."""
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def _strided(x: Tensor | None) -> tuple[Tensor | int, ...] | None:
    """A tensor as a kernel takes it: with all its strides."""
    return None if x is None else (x, *x.stride())
