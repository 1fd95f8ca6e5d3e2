"""Where the vectors of a lookup lie: the cells of one map, or a list that runs over maps of several granularities.

A listed vector is one int64: the first cell of its block in the finest grid (row-major over ``(B, H, W)``), times 8,
plus its granularity. Maps and their strides come as tuples, coarse to fine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: A listed vector has 3 bits for its granularity.
MAX_GRANULARITIES = 8


@triton.jit
def locate(index, inside, cells, height, width):
    """Granularity, first cell, image, row and column on the finest grid of each vector; int64 but the first.

    Without a list (``cells`` is None) vector ``index`` lies in cell ``index`` of the one map.
    """
    if cells is None:
        cell = tl.where(inside, index, 0).to(tl.int64)
        granularity = tl.zeros_like(index).to(tl.int32)
    else:
        listed = tl.load(cells + index, mask=inside, other=0)  # the shape of index
        cell = listed >> 3
        granularity = (listed & 7).to(tl.int32)
    line = cell // width
    return granularity, cell, line // height, line % height, cell % width


@triton.jit
def starts(maps, strides, granularity, image, row, column, G: tl.constexpr):
    """Pointer to the first channel of each vector in the map of its granularity, and the stride to the next channel."""
    start = maps[0] + image * strides[0][0]
    start += (row >> (G - 1)) * strides[0][2] + (column >> (G - 1)) * strides[0][3]
    stride = tl.zeros_like(image) + strides[0][1]
    if G > 1:
        address = start.to(tl.int64)
        for g in tl.static_range(1, G):
            other = maps[g] + image * strides[g][0]
            other += (row >> (G - 1 - g)) * strides[g][2] + (column >> (G - 1 - g)) * strides[g][3]
            address = tl.where(granularity == g, other.to(tl.int64), address)
            stride = tl.where(granularity == g, strides[g][1], stride)
        start = address.to(tl.pointer_type(maps[0].dtype.element_ty))
    return start, stride


@triton.jit(do_not_specialize=["N", "columns"])
def _dynamic_lookup_list_kernel(grain, cells, count, N, columns, G: tl.constexpr, BLOCK_N: tl.constexpr):
    """Append the vectors of every region to ``cells``, and their number to ``count``.

    Their order differs from run to run, which changes no result.
    """
    region = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    granularity = tl.load(grain + region, mask=region < N, other=-1)  # (BLOCK_N,)
    valid = (granularity >= 0) & (granularity < G)
    granularity = tl.where(valid, granularity, 0)
    number = tl.where(valid, tl.full([BLOCK_N], 1, tl.int64) << (2 * granularity), 0)
    first = tl.atomic_add(count, tl.sum(number, 0)) + tl.cumsum(number, 0) - number
    line = (region // columns).to(tl.int64)
    corner = (line * (columns << (G - 1)) << (G - 1)) + ((region % columns) << (G - 1))
    spread = tl.full([BLOCK_N], 1, tl.int64) << (G - 1 - granularity)
    for i in range(4 ** (G - 1)):
        row, column = (i >> granularity) * spread, (i & ((1 << granularity) - 1)) * spread
        cell = corner + row * (columns << (G - 1)) + column
        tl.store(cells + first + i, cell * 8 + granularity, mask=i < number)  # (BLOCK_N,)


def list_vectors(grain: Tensor, num_granularities: int, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All vectors that a grain map ``(B, h, w)`` selects, and their number ``(1,)``.

    The list has room for the finest grid. A granularity out of range marks a region without vectors. ``count``, a zero
    ``(1,)`` int64, becomes their number, if there is one at hand.
    """
    cells = torch.empty(grain.numel() * 4 ** (num_granularities - 1), dtype=torch.int64, device=grain.device)
    count = torch.zeros(1, dtype=torch.int64, device=grain.device) if count is None else count
    block = 128
    _dynamic_lookup_list_kernel[(triton.cdiv(grain.numel(), block),)](
        *(grain.contiguous(), cells, count, grain.numel(), grain.shape[2]),
        G=num_granularities,
        BLOCK_N=block,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return cells, count


class Vectors(NamedTuple):
    """The vectors to look up. Their codes go to the finest grid."""

    maps: tuple[Tensor, ...]  # each (B, D, H_g, W_g), coarse to fine
    cells: Tensor | None = None  # the list; None: every cell of the one map
    number: Tensor | None = None  # (1,) int64, how many are listed

    @classmethod
    def of(cls, x: Tensor) -> Vectors:
        """All vectors of ``x (B, D, H, W)``, or of ``(N, D)`` as one row of cells of an image."""
        if x.dim() == 2:
            x = x.as_strided((1, x.shape[1], 1, x.shape[0]), (0, x.stride(1), 0, x.stride(0)))
        return cls((x,))

    @property
    def most(self) -> int:
        """How many there may be."""
        batch, _, height, width = self.maps[-1].shape
        return batch * height * width

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides of every map."""
        return tuple(values.stride() for values in self.maps)
