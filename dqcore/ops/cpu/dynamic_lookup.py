"""The multi-granularity lookup on the CPU: the selected vectors of a few images at a time, each looked up once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dqcore.ops.cpu.code_search import code_search
from dqcore.ops.cpu.nearest_code import VECTORS
from dqcore.ops.layout import memory_format
from dqcore.ops.reference.code_sums import code_sums_reference

__all__ = ["dynamic_lookup_cpu"]


def dynamic_lookup_cpu(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`dqcore.ops.dynamic_lookup` for float16, bfloat16 and float32 on the CPU."""
    batch, dim, height, width = maps[-1].shape
    codes = torch.empty((batch, height, width), dtype=torch.int64)
    memory = memory_format(maps[-1])
    quantized = torch.empty((batch, dim, height, width), dtype=maps[-1].dtype, memory_format=memory)
    error = torch.empty((batch, height, width), dtype=torch.float32)
    shape = codebook.shape if with_sums else (0, 0)
    counts = torch.zeros(shape[0], dtype=torch.float32)
    sums = torch.zeros(shape if with_sums else (0,), dtype=torch.float32)
    search = code_search(codebook, "exact") if grain.numel() else None
    finest = 2 ** (len(maps) - 1)
    for images, lines in _parts(maps, grain):
        vectors, index, cells = _selected(maps, grain, images, lines)
        assert search is not None
        found = search(vectors)
        lost = found < 0  # vectors with a NaN or an infinity; their cells have no code
        if bool(lost.any()):
            index = index.masked_fill((index >= 0) & lost[index], -1)
        nearest = codebook[found]
        distance = torch.linalg.vector_norm(vectors.float() - nearest, dim=1).square_()
        if len(maps) > 1:
            distance /= cells
        if with_sums:
            for total, some in zip((counts, sums), code_sums_reference(vectors, found, len(codebook)), strict=True):
                total += some
        where = (images, slice(lines.start * finest, lines.stop * finest))
        empty = index < 0
        any_empty = bool(empty.any())
        for target, values in ((codes[where], found), (error[where], distance)):
            target.copy_(_at(values, index, any_empty))
        quantized[where[0], :, where[1]] = _at(nearest, index, any_empty).permute(0, 3, 1, 2)
        if any_empty:
            codes[where].masked_fill_(empty, -1)
    return codes, quantized, error, counts, sums


def _parts(maps: list[Tensor], grain: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of a batch with a bounded number of vectors: some images, or some lines of regions of one image."""
    batch, height, width = grain.shape
    lines = max(1, VECTORS // max(1, maps[-1].shape[1] * width * 4 ** (len(maps) - 1)))
    images = max(1, lines // max(1, height))
    for first in range(0, batch, images):
        for top in range(0, height, lines):
            yield slice(first, min(first + images, batch)), slice(top, min(top + lines, height))


def _selected(maps: list[Tensor], grain: Tensor, images: slice, lines: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors that the grain map selects in one part of the batch.

    Returns:
        The vectors ``(n, D)``; for each cell of the finest grid the index of its vector, -1 for none; and for each
        vector the number of its cells.
    """
    part = grain[images, lines]
    if len(maps) == 1 and not bool((part < 0).any()):
        every = maps[0][images, :, lines].permute(0, 2, 3, 1).flatten(0, 2)
        return every, torch.arange(len(every)).view_as(part), torch.ones((), dtype=torch.float32)
    vectors, cells, index, start = [], [], None, 0
    for g, values in enumerate(maps):
        here = (part == g).repeat_interleave(2**g, 1).repeat_interleave(2**g, 2)
        places = here.nonzero(as_tuple=True)
        own = values[images, :, lines.start * 2**g : lines.stop * 2**g]
        vectors.append(own.permute(0, 2, 3, 1)[places])
        number = len(places[0])
        cells.append(torch.full((number,), 4.0 ** (len(maps) - 1 - g), dtype=torch.float32))
        index = torch.full(here.shape, -1) if index is None else index.repeat_interleave(2, 1).repeat_interleave(2, 2)
        index[places] = torch.arange(start, start + number)
        start += number
    assert index is not None
    return torch.cat(vectors), index, torch.cat(cells)


def _at(values: Tensor, index: Tensor, any_empty: bool) -> Tensor:
    """``values[index]``, 0 where the index is -1; ``any_empty`` says whether it is -1 anywhere."""
    if not any_empty:
        return values[index]
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[index]
