"""Where the vectors of a lookup lie: the cells of one map, or a list that runs over maps of several granularities.

A listed token is one int64: the first cell of its block in the finest grid (row-major over ``(B, H, W)``), times 8,
plus its granularity. Maps and their strides come as tuples, coarse to fine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_GRANULARITIES = 8


@triton.jit
def locate(token, inside, cells, height, width):
    """Granularity, first cell, image, row and column on the finest grid of each token; int64 but the first."""
    if cells is None:
        cell = tl.where(inside, token, 0).to(tl.int64)
        own = tl.zeros_like(token).to(tl.int32)
    else:
        packed = tl.load(cells + token, mask=inside, other=0)
        cell = packed >> 3
        own = (packed & 7).to(tl.int32)
    line = cell // width
    return own, cell, line // height, line % height, cell % width


@triton.jit
def starts(maps, strides, own, image, row, column, G: tl.constexpr):
    """Pointers to the first channels of vectors, and from there to the next; each in the map of its granularity."""
    start = maps[0] + image * strides[0][0]
    start += (row >> (G - 1)) * strides[0][2] + (column >> (G - 1)) * strides[0][3]
    stride = tl.zeros_like(image) + strides[0][1]
    if G > 1:
        address = start.to(tl.int64)
        for g in tl.static_range(1, G):
            other = maps[g] + image * strides[g][0]
            other += (row >> (G - 1 - g)) * strides[g][2] + (column >> (G - 1 - g)) * strides[g][3]
            address = tl.where(own == g, other.to(tl.int64), address)
            stride = tl.where(own == g, strides[g][1], stride)
        start = address.to(tl.pointer_type(maps[0].dtype.element_ty))
    return start, stride


@triton.jit(do_not_specialize=["N", "columns"])
def _list_tokens_kernel(grain, cells, count, N, columns, G: tl.constexpr, BLOCK_N: tl.constexpr):
    """Append the tokens of every region to ``cells``, and their number to ``count``; their order changes no result."""
    region = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    own = tl.load(grain + region, mask=region < N, other=-1)
    valid = (own >= 0) & (own < G)
    own = tl.where(valid, own, 0)
    number = tl.where(valid, tl.full([BLOCK_N], 1, tl.int64) << (2 * own), 0)
    first = tl.atomic_add(count, tl.sum(number, 0)) + tl.cumsum(number, 0) - number
    line = (region // columns).to(tl.int64)
    corner = (line * (columns << (G - 1)) << (G - 1)) + ((region % columns) << (G - 1))
    spread = tl.full([BLOCK_N], 1, tl.int64) << (G - 1 - own)
    for i in tl.static_range(4 ** (G - 1)):
        row, column = (i >> own) * spread, (i & ((1 << own) - 1)) * spread
        cell = corner + row * (columns << (G - 1)) + column
        tl.store(cells + first + i, cell * 8 + own, mask=i < number)


def list_tokens(grain: Tensor, num_granularities: int) -> tuple[Tensor, Tensor]:
    """All tokens of a grain map ``(B, h, w)``, in a buffer with room for the finest grid, and their number ``(1,)``.

    A granularity out of range marks a region without tokens.
    """
    cells = torch.empty(grain.numel() * 4 ** (num_granularities - 1), dtype=torch.int64, device=grain.device)
    count = torch.zeros(1, dtype=torch.int64, device=grain.device)
    block = 128
    _list_tokens_kernel[(triton.cdiv(grain.numel(), block),)](
        grain.contiguous(), cells, count, grain.numel(), grain.shape[2], G=num_granularities, BLOCK_N=block, num_warps=4
    )
    return cells, count


class Tokens(NamedTuple):
    """The vectors to look up, and where their codes go: the finest grid."""

    maps: tuple[Tensor, ...]  # each (B, D, H_g, W_g), coarse to fine
    cells: Tensor | None = None  # None: every cell of the one map
    count: Tensor | None = None  # (1,) int64, how many are listed

    @classmethod
    def of(cls, x: Tensor) -> Tokens:
        """All vectors of ``x (B, D, H, W)``, or of ``(N, D)`` as one line of an image."""
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
        """Of every map."""
        return tuple(values.stride() for values in self.maps)
