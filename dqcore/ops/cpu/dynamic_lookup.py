"""The multi-granularity lookup on the CPU: the selected vectors of a few images at a time, each looked up once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dqcore.ops.code_sums import code_sums_reference
from dqcore.ops.cpu.nearest_code import TOKENS, CodeSearch


def dynamic_lookup_cpu(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`dqcore.ops.dynamic_lookup` for float16, bfloat16 and float32 on the CPU."""
    batch, dim, height, width = maps[-1].shape
    codes = torch.empty((batch, height, width), dtype=torch.int64)
    quantized = torch.empty((batch, dim, height, width), dtype=maps[-1].dtype)
    error = torch.empty((batch, height, width))
    shape = codebook.shape if with_sums else (0, 0)
    counts, sums = torch.zeros(shape[0]), torch.zeros(shape if with_sums else (0,))
    search = CodeSearch(codebook, "exact") if grain.numel() else None
    finest = 2 ** (len(maps) - 1)
    for images, lines in _parts(maps, grain):
        tokens, slot, cells = _tokens(maps, grain, images, lines)
        assert search is not None
        found = search(tokens)
        vectors = codebook[found]
        distance = torch.linalg.vector_norm(tokens.float() - vectors, dim=1).square_() / cells
        if with_sums:
            for total, some in zip((counts, sums), code_sums_reference(tokens, found, len(codebook)), strict=True):
                total += some
        where = (images, slice(lines.start * finest, lines.stop * finest))
        empty = slot < 0
        hole = bool(empty.any())
        for target, values in ((codes[where], found), (error[where], distance)):
            target.copy_(_at(values, slot, hole))
        quantized[where[0], :, where[1]] = _at(vectors, slot, hole).permute(0, 3, 1, 2)
        if hole:
            codes[where].masked_fill_(empty, -1)
    return quantized, error, codes, counts, sums


def _parts(maps: list[Tensor], grain: Tensor) -> Iterator[tuple[slice, slice]]:
    """Some images, or some lines of regions of one image, that hold a block of vectors on the finest grid."""
    batch, height, width = grain.shape
    lines = max(1, TOKENS // max(1, maps[-1].shape[1] * width * 4 ** (len(maps) - 1)))
    images = max(1, lines // max(1, height))
    for first in range(0, batch, images):
        for top in range(0, height, lines):
            yield slice(first, min(first + images, batch)), slice(top, min(top + lines, height))


def _tokens(maps: list[Tensor], grain: Tensor, images: slice, lines: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The selected vectors ``(n, D)``, the vector at each cell of the finest grid (-1: none), each vector's cells."""
    part = grain[images, lines]
    tokens, cells, slot, start = [], [], None, 0
    for g, values in enumerate(maps):
        here = (part == g).repeat_interleave(2**g, 1).repeat_interleave(2**g, 2)
        index = here.nonzero(as_tuple=True)
        own = values[images, :, lines.start * 2**g : lines.stop * 2**g]
        tokens.append(own.permute(0, 2, 3, 1)[index])
        cells.append(torch.full((len(index[0]),), float(4 ** (len(maps) - 1 - g))))
        slot = torch.full(here.shape, -1) if slot is None else slot.repeat_interleave(2, 1).repeat_interleave(2, 2)
        slot[index] = torch.arange(start, start + len(index[0]))
        start += len(index[0])
    assert slot is not None
    return torch.cat(tokens), slot, torch.cat(cells)


def _at(values: Tensor, slot: Tensor, hole: bool) -> Tensor:
    """``values[slot]``, 0 in holes."""
    if not hole:
        return values[slot]
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[slot]
