"""The multi-granularity lookup on the CPU: the selected vectors of a few images at a time, each looked up once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.ops.code_sums import code_sums_reference
from dqcore.ops.cpu.nearest_code import TOKENS, CodeSearch


class _Strip(NamedTuple):
    """Some lines of regions of one image, and where their vectors lie."""

    image: int
    lines: slice  # of the finest grid
    grain: Tensor  # (n, w)


def dynamic_lookup_cpu(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`dqcore.ops.dynamic_lookup` for float16, bfloat16 and float32 on the CPU."""
    batch, dim, height, width = maps[-1].shape
    codes = torch.full((batch, height, width), -1)
    quantized = torch.zeros((batch, dim, height, width), dtype=maps[-1].dtype)
    error = torch.zeros((batch, height, width))
    shape = codebook.shape if with_sums else (0, 0)
    counts, sums = torch.zeros(shape[0]), torch.zeros(shape if with_sums else (0,))
    search = CodeSearch(codebook, "exact") if grain.numel() else None
    for strips in _groups(maps, grain):
        cells = [_cells(strip.grain, len(maps)) for strip in strips]
        tokens = torch.cat([_tokens(maps, strip, index) for strip, index in zip(strips, cells, strict=True)])
        assert search is not None
        found = search(tokens)
        distance = torch.linalg.vector_norm(tokens.float() - codebook[found], dim=1).square_()
        if with_sums:
            some_counts, some_sums = code_sums_reference(tokens, found, len(codebook))
            counts += some_counts
            sums += some_sums
        start = 0
        for strip, index in zip(strips, cells, strict=True):
            stop = start + sum(map(len, index))
            image, lines = strip.image, strip.lines
            _fill(codes[image, lines], index, found[start:stop], len(maps))
            _fill(error[image, lines], index, distance[start:stop], len(maps), share=True)
            _write_vectors(quantized[image, :, lines], codebook, codes[image, lines])
            start = stop
    return codes, quantized, error, counts, sums


def _groups(maps: list[Tensor], grain: Tensor) -> Iterator[list[_Strip]]:
    """Strips of regions, gathered until their vectors fill a block."""
    finest = 2 ** (len(maps) - 1)
    per_line = max(1, maps[-1].shape[1] * grain.shape[2] * finest**2)
    step = max(1, TOKENS // per_line)
    group, size = [], 0
    for image in range(grain.shape[0]):
        for top in range(0, grain.shape[1], step):
            part = grain[image, top : top + step]
            if group and size + len(part) > step:
                yield group
                group, size = [], 0
            group.append(_Strip(image, slice(top * finest, (top + len(part)) * finest), part))
            size += len(part)
    if group:
        yield group


def _cells(grain: Tensor, num_granularities: int) -> list[Tensor]:
    """For each granularity the cells of its own grid, raveled, that the grain map selects."""
    return [
        (grain == g).repeat_interleave(2**g, 0).repeat_interleave(2**g, 1).flatten().nonzero()[:, 0]
        for g in range(num_granularities)
    ]


def _tokens(maps: list[Tensor], strip: _Strip, cells: list[Tensor]) -> Tensor:
    """The selected vectors ``(n, D)`` of a strip, granularity after granularity."""
    parts = []
    for g, index in enumerate(cells):
        repeat = 2 ** (len(maps) - 1 - g)
        lines = slice(strip.lines.start // repeat, strip.lines.stop // repeat)
        flat = maps[g][strip.image, :, lines].flatten(1)
        parts.append(flat.index_select(1, index).T)
    return torch.cat(parts)


def _fill(target: Tensor, cells: list[Tensor], values: Tensor, num_granularities: int, share: bool = False) -> None:
    """Write each code's value, or its ``share`` per cell, into its block of ``target (lines, W)`` on the finest grid."""
    start = 0
    for g, index in enumerate(cells):
        repeat = 2 ** (num_granularities - 1 - g)
        columns = target.shape[1] // repeat
        part = values[start : start + len(index)]
        start += len(index)
        if share:
            part = part / repeat**2
        line, column = index // columns * repeat, index % columns * repeat
        for i in range(repeat):
            for j in range(repeat):
                target[line + i, column + j] = part


def _write_vectors(target: Tensor, codebook: Tensor, codes: Tensor) -> None:
    """``target (D, lines, W)`` becomes the vectors of ``codes (lines, W)``; a region without a code stays 0."""
    vectors = codebook[codes.clamp_min(0)].permute(2, 0, 1)
    target.copy_(vectors)
    if bool((codes < 0).any()):
        target.masked_fill_(codes < 0, 0)
