"""The two tapes: granularity after granularity, as in the paper, and region after region, as in its supplement."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.codes import Order, check_order
from dqcore.models.tape import Entries, Tape, positions_in_order

__all__ = ["coarse_to_fine_tape", "raster_tape"]


def coarse_to_fine_tape(
    region_grid: tuple[int, int], num_granularities: int, codebook_size: int, num_labels: int, order: Order
) -> Tape:
    """Start, codes and end of each granularity in turn (paper, section 3.3).

    A granularity with P cells numbers its position tokens so: cells ``0 .. P - 1``, padding ``P``, end ``P + 1``, and
    starts from ``P + 2`` on, one for each of ``num_labels`` labels. Contents are numbered in the same way, with the
    codebook's size K in place of P. The position embedding stacks one table for each granularity.
    """
    check_order(order)
    parts: list[Entries] = []
    offset = 0
    for g in range(num_granularities):
        cells = positions_in_order(region_grid, g, order)
        count = len(cells)
        columns = torch.cat([torch.tensor([count + 2]), cells, torch.tensor([count + 1])])
        special = torch.zeros(count + 2, dtype=torch.bool)
        special[[0, -1]] = True
        contents = torch.full_like(columns, -1)
        contents[0], contents[-1] = codebook_size + 2, codebook_size + 1
        starts = torch.zeros_like(special)
        starts[0] = True
        grains, positions = torch.full_like(columns, g), torch.where(special, -1, columns)
        parts.append(Entries(grains, positions, contents, columns + offset, columns, starts))
        offset += count + 2 + num_labels
    return Tape(_join(parts), region_grid, num_granularities, order, coarse_to_fine=True)


def raster_tape(region_grid: tuple[int, int], num_granularities: int, codebook_size: int) -> Tape:
    """One start, then regions in raster order, each with its codes in raster order (supplement, section 3.2).

    A region's entries are numbered coarse to fine: ``E = (4**G - 1) / 3`` in all. An entry's number is its column, and
    its row is ``region * E + number``. Starts have rows from ``regions * E + 2`` on. After the last region comes an
    end that is not a token: it is where a walk rests when all regions are covered.
    """
    regions, size = region_grid[0] * region_grid[1], (4**num_granularities - 1) // 3
    by_region = [
        positions_in_order(region_grid, g, "region-first").view(regions, 4**g) for g in range(num_granularities)
    ]
    grains = torch.cat([torch.full((4**g,), g) for g in range(num_granularities)]).expand(regions, size)
    number = torch.arange(size).expand(regions, size)
    rows = torch.arange(regions)[:, None] * size + number
    codes = Entries(
        grains.flatten(),
        torch.cat(by_region, 1).flatten(),
        torch.full((regions * size,), -1),
        rows.flatten(),
        number.flatten(),
        torch.zeros(regions * size, dtype=torch.bool),
    )
    start = _special(content=codebook_size + 2, row=regions * size + 2, start=True)
    end = _special(content=-1, row=regions * size + 2, start=False)
    return Tape(_join([start, codes, end]), region_grid, num_granularities)


def _special(content: int, row: int, start: bool) -> Entries:
    """One special entry of a raster tape; its column is never predicted."""
    zero = torch.tensor([0])
    return Entries(zero, zero - 1, torch.tensor([content]), torch.tensor([row]), zero, torch.tensor([start]))


def _join(parts: list[Entries]) -> Entries:
    tables: list[Tensor] = [torch.cat(tables) for tables in zip(*parts, strict=True)]
    return Entries(*tables)
