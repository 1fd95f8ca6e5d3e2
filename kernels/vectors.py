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
#: Along which axis of a block neighbouring lanes load, where nothing is known of its addresses: before Triton 3.7 the
#: first, the last since.
FIRST_AXIS = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7))


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
def starts(
    maps, strides, rows, index, granularity, image, row, column,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Pointer to the first channel of each vector, and the stride to the next channel.

    Where there are packed ``rows``, it is row ``index``; otherwise the vector lies in the map of its granularity. The
    stride is the constant 1 if the channels of a vector lie side by side.
    """
    if rows is not None:
        return rows + index * D, tl.zeros_like(index) + 1
    start = maps[0] + image * strides[0][0]
    start += (row >> (G - 1)) * strides[0][2] + (column >> (G - 1)) * strides[0][3]
    stride = tl.zeros_like(image) + (1 if ALIGN > 0 else strides[0][1])
    if G > 1:
        address = start.to(tl.int64)
        for g in tl.static_range(1, G):
            other = maps[g] + image * strides[g][0]
            other += (row >> (G - 1 - g)) * strides[g][2] + (column >> (G - 1 - g)) * strides[g][3]
            address = tl.where(granularity == g, other.to(tl.int64), address)
            if ALIGN == 0:
                stride = tl.where(granularity == g, strides[g][1], stride)
        start = address.to(tl.pointer_type(maps[0].dtype.element_ty))
        if ALIGN == 16:
            start = tl.multiple_of(start, 16)
    return start, stride


@triton.jit
def block_of(start, stride, inside, channel, D: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr):
    """BLOCK_D channels of vectors from ``channel`` on, ``(BLOCK_N, BLOCK_D)``, as they are.

    Lanes run along channels if those lie side by side; otherwise along vectors, since neighbouring ones lie side by
    side in a plane.
    """
    d = channel + tl.arange(0, BLOCK_D)
    if ALIGN > 0 or FIRST_AXIS:
        known = inside[:, None] & (d < D)[None, :]
        return tl.load(start[:, None] + d[None, :] * stride[:, None], mask=known, other=0.0)  # (BLOCK_N, BLOCK_D)
    else:
        known = (d < D)[:, None] & inside[None, :]
        from_map = start[None, :] + d[:, None] * stride[None, :]
        return tl.trans(tl.load(from_map, mask=known, other=0.0))  # loaded as (BLOCK_D, BLOCK_N)


@triton.jit
def store_planes(to, area, value, inside, d, D: tl.constexpr):
    """Write ``value (BLOCK_N, BLOCK_D)``, channels ``d`` of cells, each channel in a plane ``area`` after the last."""
    if FIRST_AXIS:
        here = inside[:, None] & (d < D)[None, :]
        tl.store(to[:, None] + d[None, :] * area, value, mask=here)  # (BLOCK_N, BLOCK_D)
    else:
        here = (d < D)[:, None] & inside[None, :]
        tl.store(to[None, :] + d[:, None] * area, tl.trans(value), mask=here)  # (BLOCK_D, BLOCK_N)


@triton.jit
def row_of(places, regions, region, line, column, halvings, inside, G: tl.constexpr):
    """Which row of the list a cell's code has, int64; ``places`` as :func:`list_vectors` returns them."""
    within: tl.constexpr = 2 ** (G - 1) - 1
    start = tl.load(places + region, mask=inside, other=0).to(tl.int64)  # the shape of region
    step = tl.load(places + regions + region, mask=inside, other=0).to(tl.int64)  # the shape of region
    return start + ((line & within) >> halvings) * step + ((column & within) >> halvings)


@triton.jit
def list_vectors(
    grain, out, lines, columns, program, across, G: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr
):
    """List the vectors of LINES lines of regions, coarse to fine, each granularity row after row.

    So neighbours in the list are neighbours in their map, and lanes that read them share sectors. Where a program's
    vectors begin differs from run to run, which changes no result. ``across`` programs take the same lines.
    """
    cells, places, count = out
    line = program // across * LINES + tl.arange(0, LINES)
    column = program % across * COLUMNS + tl.arange(0, COLUMNS)
    region = line[:, None] * columns + column[None, :]
    inside = (line < lines)[:, None] & (column < columns)[None, :]
    granularity = tl.load(grain + region, mask=inside, other=-1).to(tl.int32)  # (LINES, COLUMNS)
    start = tl.zeros([LINES, COLUMNS], tl.int32)
    step = tl.zeros([LINES, COLUMNS], tl.int32)
    total = tl.full([], 0, tl.int32)
    for g in tl.static_range(G):
        mine = granularity == g
        rank = tl.cumsum(mine.to(tl.int32), 1) - mine.to(tl.int32)
        number = tl.sum(mine.to(tl.int32), 1)  # (LINES,)
        before = tl.cumsum(number, 0) - number
        start = tl.where(mine, total + (before[:, None] << 2 * g) + (rank << g), start)
        step = tl.where(mine, number[:, None] << g, step)
        total += tl.sum(number, 0) << 2 * g
    start += tl.atomic_add(count, total.to(tl.int64)).to(tl.int32)
    tl.store(places + region, start, mask=inside)  # (LINES, COLUMNS), as are the others
    tl.store(places + lines * columns + region, step, mask=inside)
    valid = (granularity >= 0) & (granularity < G)
    granularity = tl.where(valid, granularity, 0)
    width = columns << (G - 1)
    corner = (line.to(tl.int64) * width << (G - 1))[:, None] + (column << (G - 1))[None, :]
    for i in range(4 ** (G - 1)):
        row, place = i >> granularity, i & ((1 << granularity) - 1)
        cell = corner + ((row << (G - 1 - granularity)) * width + (place << (G - 1 - granularity))).to(tl.int64)
        known = valid & (i < (1 << 2 * granularity))
        tl.store(cells + start + row * step + place, cell * 8 + granularity, mask=known)


class Vectors(NamedTuple):
    """The vectors to look up. Their codes go to the finest grid.

    A list has room for the finest grid; ``survey`` writes it. A granularity out of range marks a region without
    vectors. Places are where the list holds a region's first vector, and how far it is to the next row of its vectors.
    """

    maps: tuple[Tensor, ...]  # each (B, D, H_g, W_g), coarse to fine
    grain: Tensor | None = None  # (B, h, w) int64, which of them are listed; None: every cell of the one map
    cells: Tensor | None = None  # the list
    number: Tensor | None = None  # (1,) int64, how many are listed
    places: Tensor | None = None  # (2, B, h, w) int32
    rows: Tensor | None = None  # (most, D), the listed vectors packed: the lookup fills it while it rounds them

    @classmethod
    def of(cls, x: Tensor) -> Vectors:
        """All vectors of ``x (B, D, H, W)``, or of ``(N, D)`` as one row of cells of an image."""
        if x.dim() == 2:
            x = x.as_strided((1, x.shape[1], 1, x.shape[0]), (0, x.stride(1), 0, x.stride(0)))
        return cls((x,))

    @classmethod
    def listed(cls, maps: list[Tensor], grain: Tensor, count: Tensor | None = None) -> Vectors:
        """Room for those that a grain map selects; for packed rows, too, if the channels of a vector lie apart.

        ``count``, a zero ``(1,)`` int64, becomes their number, if there is one at hand.
        """
        grain, device = grain.contiguous(), grain.device
        cells = torch.empty(grain.numel() * 4 ** (len(maps) - 1), dtype=torch.int64, device=device)
        count = torch.zeros(1, dtype=torch.int64, device=device) if count is None else count
        places = torch.empty((2, *grain.shape), dtype=torch.int32, device=device)
        batch = cls(tuple(maps), grain, cells, count, places)
        if batch.align > 0:
            return batch
        return batch._replace(rows=maps[-1].new_empty(batch.most, maps[-1].shape[1]))

    @property
    def most(self) -> int:
        """How many there may be."""
        batch, _, height, width = self.maps[-1].shape
        return batch * height * width

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides of every map."""
        return tuple(values.stride() for values in self.maps)

    @property
    def align(self) -> int:
        """Of how many bytes every vector's address is a multiple: 16 or its dtype's; 0 if its channels lie apart."""
        if any(values.stride(1) != 1 for values in self.maps):
            return 0
        size = self.maps[0].element_size()
        even = all(
            values.data_ptr() % 16 == 0 and all(values.stride(i) * size % 16 == 0 for i in (0, 2, 3))
            for values in self.maps
        )
        return 16 if even else size

    @property
    def packed(self) -> int:
        """The same of what follows rounding, which reads packed rows if there are any."""
        return self.align if self.rows is None else self.rows.element_size()


def is_channels_last(x: Tensor) -> bool:
    """Whether channels lie side by side in memory and cells do not."""
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
