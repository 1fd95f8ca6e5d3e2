"""The specification of ``draw_vectors``: some vectors of a batch, each with the same chance.

Which vectors are drawn depends on a seed and on where they lie in the batch, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dqcore.ops.layout import cells_per_code, merge_maps

__all__ = ["STEP", "draw", "draw_vectors_reference", "mix", "multiples"]

#: 2**64 over the golden ratio, as a signed number: consecutive multiples are far apart.
STEP = -0x61C8864680B583EB
LARGEST = 2**63 - 1


def draw_vectors_reference(
    maps: list[Tensor],
    grain: Tensor,
    codes: Tensor,
    error: Tensor,
    seed: Tensor,
    earlier: Tensor | None,
    pool: list[Tensor],
    before: int,
    number: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from a part of a batch, and of these and what earlier parts gave keep those with the largest numbers."""
    first = before if earlier is None else before + earlier
    drawn = draw(maps, grain, codes, error, first, number, seed)
    if not pool:
        return drawn
    key, vectors, distance = (torch.cat(pair) for pair in zip(pool, drawn, strict=True))
    key, order = key.topk(min(number, len(key)))
    return key, vectors[order], distance[order]


def draw(
    maps: Sequence[Tensor],
    grain: Tensor,
    codes: Tensor | None,
    error: Tensor | None,
    before: Tensor | int,
    number: int,
    seed: Tensor,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw without replacement from the selected vectors, each with the same chance.

    Args:
        maps: Feature maps coarse to fine, ``(B, D, h * 2**g, w * 2**g)``.
        grain: ``(B, h, w)``; a region whose granularity is -1 has no vectors.
        codes: ``(B, H, W)``, negative where a cell's vector is left out; None for nowhere.
        error: ``(B, H, W)``, squared distances to the nearest codes, each divided by the cells that its code fills;
            None where there are no codes yet.
        before: Cells of the finest grid that come before these in the batch.
        number: The most vectors to draw; fewer if the finest grid has fewer cells.
        seed: Scalar int64.
        keys: Random numbers ``(B, H, W)`` that are known already, -1 for none; then seed and ``before`` mean nothing.

    Returns:
        Random numbers ``(n,)``, descending, -1 for fillers; vectors ``(n, D)`` and distances ``(n,)``, float32.
    """
    selected = _corners(grain, len(maps))
    if codes is not None:
        selected = selected & (codes >= 0)
    cells = maps[-1][:, 0].numel()
    if keys is None:
        place = torch.arange(cells, device=grain.device) + before
        keys = mix(seed + multiples(place)) & LARGEST
    key, cell = keys.flatten().masked_fill(~selected.flatten(), -1).topk(min(number, cells))
    merged = merge_maps(maps, grain) if len(maps) > 1 else maps[0]
    height, width = merged.shape[2:]
    size, width = max(1, height * width), max(1, width)
    vectors = merged.detach()[cell // size, :, cell % size // width, cell % width].float()
    if error is None:
        distance = torch.full(cell.shape, torch.inf, dtype=torch.float32, device=cell.device)
    else:
        error = error.detach() * (cells_per_code(grain, len(maps)) if len(maps) > 1 else 1)
        distance = error.flatten()[cell].float()
    valid = key >= 0
    return key, torch.where(valid[:, None], vectors, 0), distance.masked_fill(~valid, 0)


def multiples(place: Tensor) -> Tensor:
    """``place * STEP`` in int64, which wraps; without the xor Inductor takes it for an index, and that may not wrap."""
    return (place ^ 0) * STEP


def mix(bits: Tensor) -> Tensor:
    """A bijection of int64 that looks random."""
    bits = (bits ^ (bits >> 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ (bits >> 27)) * -0x6B2FB644ECCEEE15
    return bits ^ (bits >> 31)


def _corners(grain: Tensor, num_granularities: int) -> Tensor:
    """The upper left cell of each code's block on the finest grid, ``(B, H, W)`` bool."""
    if num_granularities == 1:
        return grain >= 0
    finest = 2 ** (num_granularities - 1)
    side = torch.where(grain < 0, 0, 1 << (num_granularities - 1 - grain).clamp_min(0))
    side = side.repeat_interleave(finest, 1).repeat_interleave(finest, 2)
    rows = torch.arange(side.shape[1], device=grain.device)[:, None]
    columns = torch.arange(side.shape[2], device=grain.device)
    return (side > 0) & ((rows | columns) & (side - 1) == 0)
