"""Multi-granularity lookup, backward: the gradients of all maps in one launch, without atomics.

A program takes one tile of the finest grid, reads its gradient once, and writes that tile of every gradient, so the
result is the same in every run. Tiles of planes begin where a 32-byte sector does, as far as their size allows, so that
few sectors belong to two of them. Reference: ``dqcore.ops.dynamic_lookup``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import architecture, cdiv, next_power_of_2, on_device
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import replayed
from dqcore.kernels.vectors import is_channels_last

#: A program has a tile of so many elements: of a plane so many columns, of vectors so many cells.
BACKWARD = {"ELEMENTS": 2048, "COLUMNS": 32, "LAST_CELLS": 16, "num_warps": 4}
#: The same where a line of a plane is no whole number of sectors: at most so many columns, and cells.
UNEVEN = {"ELEMENTS": 4096, "COLUMNS": 128, "CELLS": 256, "num_warps": 8}
SECTOR = 32  # bytes that memory moves at least


@triton.jit
def _tile(tensor, image, row, column, d, known, D: tl.constexpr, LAST: tl.constexpr):
    """Channels ``d`` of cells of a map, ``(BLOCK_N, BLOCK_D)`` float32; lanes run along what lies side by side."""
    start, stride_b, stride_d, stride_h, stride_w = tensor
    start += image * stride_b + row * stride_h + column * stride_w
    if LAST:
        value = tl.load(start[:, None] + d[None, :] * stride_d, mask=known[:, None] & (d < D)[None, :], other=0.0)
    else:
        value = tl.load(start[None, :] + d[:, None] * stride_d, mask=(d < D)[:, None] & known[None, :], other=0.0)
        value = tl.trans(value)  # loaded as (BLOCK_D, BLOCK_N)
    return value.to(tl.float32)


@triton.jit
def _block_sum(cells, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sums of blocks of SPREAD x SPREAD cells, ``(ROWS * COLUMNS, BLOCK_D)`` -> that without the blocks."""
    if SPREAD == 1:
        return cells
    else:
        blocks = tl.reshape(cells, [ROWS // SPREAD, SPREAD, COLUMNS // SPREAD, SPREAD, BLOCK_D])
        return tl.reshape(tl.sum(tl.sum(blocks, 3), 1), [ROWS * COLUMNS // (SPREAD * SPREAD), BLOCK_D])


@triton.jit
def _gradient(
    x, grain, codes, straight, scale, value, grad, at,
    GRANULARITY: tl.constexpr, G: tl.constexpr, D: tl.constexpr, LAST: tl.constexpr,
    STRIPS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the map of one granularity; arguments are those of :func:`_dynamic_lookup_bwd_kernel`."""
    image, top, left, lines, columns, d = at
    SIDE: tl.constexpr = 2**GRANULARITY  # a region's, in cells of this map
    SPREAD: tl.constexpr = 2 ** (G - 1) // SIDE
    ROWS: tl.constexpr = STRIPS * 2 ** (G - 1)
    CELLS: tl.constexpr = (ROWS // SPREAD) * (COLUMNS // SPREAD)
    place = tl.arange(0, CELLS)
    row, column = top // SPREAD + place // (COLUMNS // SPREAD), left // SPREAD + place % (COLUMNS // SPREAD)
    inside = (column < columns * SIDE) & (row < lines * SIDE)
    region = (image * lines + row // SIDE) * columns + column // SIDE
    mine = tl.load(grain + region, mask=inside, other=-1) == GRANULARITY
    cell = (image * lines * SIDE * SPREAD + row * SPREAD) * (columns * SIDE * SPREAD) + column * SPREAD
    mine &= inside & (tl.load(codes + cell, mask=mine & inside, other=-1) >= 0)
    total = tl.zeros([CELLS, BLOCK_D], tl.float32)
    if straight is not None:
        total += _block_sum(straight, ROWS, COLUMNS, SPREAD, BLOCK_D)
    if scale is not None:
        vector = _tile(x, image, row, column, d, mine, D, LAST)
        weight = _block_sum(tl.reshape(scale, [ROWS * COLUMNS, 1]), ROWS, COLUMNS, SPREAD, 1)
        nearest = _block_sum(value, ROWS, COLUMNS, SPREAD, BLOCK_D)
        total += (vector - nearest) * (weight * (2 / (SPREAD * SPREAD)))
    start, stride_b, stride_d, stride_h, stride_w = grad
    to = start + image * stride_b + row * stride_h + column * stride_w
    result = tl.where(mine[:, None], total, 0.0).to(start.dtype.element_ty)
    if LAST:
        tl.store(to[:, None] + d[None, :] * stride_d, result, mask=inside[:, None] & (d < D)[None, :])
    else:
        here = (d < D)[:, None] & inside[None, :]
        tl.store(to[None, :] + d[:, None] * stride_d, tl.trans(result), mask=here)  # (BLOCK_D, cells)


@triton.jit(do_not_specialize=["lines", "columns"])
def _dynamic_lookup_bwd_kernel(
    where, grain, codes, quantized, grad_quantized, grad_error, grads, lines, columns,
    G: tl.constexpr, D: tl.constexpr, LAST: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of all maps in a tile: STRIPS lines of regions, of them COLUMNS columns of cells, BLOCK_D channels.

    Maps are tuples of a tensor and its strides, coarse to fine. ``lines`` and ``columns`` are those of the regions.
    """
    SIDE: tl.constexpr = 2 ** (G - 1)  # a region's, in cells
    ROWS: tl.constexpr = STRIPS * SIDE
    down, across = tl.cdiv(lines, STRIPS), tl.cdiv(columns * SIDE, COLUMNS)
    line, left = tl.program_id(0) // across, tl.program_id(0) % across * COLUMNS
    image, top = (line // down).to(tl.int64), line % down * ROWS
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    place = tl.arange(0, ROWS * COLUMNS)
    row, column = top + place // COLUMNS, left + place % COLUMNS
    inside = (column < columns * SIDE) & (row < lines * SIDE)
    region = (image * lines + row // SIDE) * columns + column // SIDE
    granularity = tl.load(grain + region, mask=inside, other=-1).to(tl.int32)
    from_codes = codes + (image * lines * SIDE + row) * (columns * SIDE) + column
    coded = inside & (tl.load(from_codes, mask=inside, other=-1) >= 0)  # (ROWS * COLUMNS,), as is the one before
    straight, scale, value = None, None, None
    if grad_quantized is not None:
        straight = _tile(grad_quantized, image, row, column, d, coded, D, LAST)
    if grad_error is not None:
        first, stride_b, stride_h, stride_w = grad_error
        first += image * stride_b + row * stride_h + column * stride_w
        scale = tl.load(first, mask=coded, other=0.0).to(tl.float32)  # (ROWS * COLUMNS,)
        blocks = tl.where(coded, SIDE >> granularity, 1) - 1  # the code's first cell has none of these bits
        first_cell = coded & (((row | column) & blocks) == 0)
        value = _tile(quantized, image, row, column, d, first_cell, D, LAST)  # 0 but at the first cell of each code
    for g in tl.static_range(G):
        at = (image, top, left, lines, columns, d)
        _gradient(
            *(where[g], grain, codes, straight, scale, value, grads[g], at, g, G, D),
            *(LAST, STRIPS, COLUMNS, BLOCK_D),
        )


def fits(*maps: Tensor | None) -> bool:
    """Whether no line or column of an image lies 2^31 numbers behind the first: the kernel counts them in 32 bits."""
    return all(x is None or max(x.stride(2) * x.shape[2], x.stride(3) * x.shape[3]) < 2**31 for x in maps)


@replayed
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
    (images, lines, columns), dim = grain.shape, maps[0].shape[1]
    if grads[-1].numel() == 0:
        return grads
    last = is_channels_last(maps[-1])
    tile = _backward_tile(maps, last)
    tiles = images * cdiv(lines, tile["STRIPS"]) * cdiv(maps[-1].shape[3], tile["COLUMNS"])
    with on_device(maps[-1]):
        launch(_dynamic_lookup_bwd_kernel, (tiles, cdiv(dim, tile["BLOCK_D"])))(
            *(tuple(map(_strided, maps)), grain, codes, _strided(quantized), _strided(grad_quantized)),
            *(_strided(grad_error), tuple(map(_strided, grads)), lines, columns),
            G=len(maps),
            D=dim,
            LAST=last,
            **tile,
            # On sm_100 ptxas may spill to fit one more block, unless there is a limit; elsewhere one makes it use more.
            **({"maxnreg": 128} if 100 <= architecture() < 120 else {}),
        )
    return grads


def _backward_tile(maps: list[Tensor], last: bool) -> dict[str, Any]:
    """Few cells and many channels where these lie side by side, the reverse in planes; there whole lines of regions.

    Where a line of a plane is no whole number of sectors, a tile has all of it if it can, and so many lines of regions
    as are whole sectors together; not of more than three granularities, which would spill.
    """
    (_, dim, height, width), rows, strips = maps[-1].shape, 2 ** (len(maps) - 1), 1
    size = width * maps[-1].element_size()
    form = BACKWARD if last or size % SECTOR == 0 or rows > 4 else UNEVEN
    columns = BACKWARD["LAST_CELLS"] // rows if last else form["COLUMNS"]
    columns = min(max(rows, columns), next_power_of_2(width))
    if form is UNEVEN:
        most = min(UNEVEN["CELLS"] // (rows * columns), next_power_of_2(height // rows))
        while rows * strips * size % SECTOR and 2 * strips <= most:
            strips *= 2
    block = max(1, min(form["ELEMENTS"] // (rows * strips * columns), next_power_of_2(dim)))
    tile = {"STRIPS": strips, "COLUMNS": columns, "BLOCK_D": block}
    return tile | {"num_warps": form["num_warps"], "enable_fp_fusion": True}


def _strided(x: Tensor | None) -> tuple[Tensor | int, ...] | None:
    """A tensor as a kernel takes it: with all its strides."""
    return None if x is None else (x, *x.stride())
