"""The tape: every token that an image may have, in the one order in which a prior reads and makes them.

Codes of every granularity and the special tokens between them lie on it. The tokens of one image are a subset, always
taken forwards, so positions ascend by construction. Which subsets cover each region exactly once is said by a status
of each entry (:data:`BANNED`, :data:`POSSIBLE`, :data:`MANDATORY`) and by what taking an entry does to the other
entries of its region.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dqcore.codes import CodeSequence, Order, check_order

__all__ = ["BANNED", "MANDATORY", "NULL", "POSSIBLE", "Tape", "Tokens", "coarse_to_fine_tape", "raster_tape"]

#: Statuses of an entry: it may not be taken, it may be taken or passed over, it must be taken.
BANNED, POSSIBLE, MANDATORY = 0, 1, 2
#: The label of an image without a class: it selects the padding token, which a packed sequence does not need.
NULL = -2


class Tokens(NamedTuple):
    """The tokens of ``B`` images, packed; ``N`` in all.

    Attributes:
        contents: Code or special content, ``(N,)`` int64.
        entries: Place on the tape, ascending within an image, ``(N,)`` int64.
        rows: Row of the position embedding, ``(N,)`` int64.
        columns: Class of the position head, ``(N,)`` int64.
        inputs: Which tokens the model reads, all but each image's last: ``(N - B,)`` int64. Token ``inputs + 1`` is
            the one that it predicts from there.
        steps: Index of each input in its image, ``(N - B,)`` int64.
        cu_seqlens: Where each image's inputs begin, ``(B + 1,)`` int32.
    """

    contents: Tensor
    entries: Tensor
    rows: Tensor
    columns: Tensor
    inputs: Tensor
    steps: Tensor
    cu_seqlens: Tensor


class Tape(nn.Module):
    """Tables of ``L`` entries, kept as buffers that move with the model and are not saved.

    Args:
        grains: Granularity of each entry, ``(L,)``.
        positions: Position of each code, -1 of special tokens, ``(L,)``.
        contents: Content of each special token, -1 of codes and of an end that is no token, ``(L,)``.
        rows: Row of the position embedding, ``(L,)``.
        columns: Class of the position head, ``(L,)``.
        starts: Which entries are starts, whose content, row and column the label is added to, ``(L,)`` bool.
        region_grid: Regions ``(h, w)``.
        num_granularities: ``G``.
    """

    grains: Tensor
    positions: Tensor
    contents: Tensor
    rows: Tensor
    columns: Tensor
    starts: Tensor
    specials: Tensor
    status: Tensor
    rules: Tensor
    lookup: Tensor

    def __init__(
        self,
        grains: Tensor,
        positions: Tensor,
        contents: Tensor,
        rows: Tensor,
        columns: Tensor,
        starts: Tensor,
        region_grid: tuple[int, int],
        num_granularities: int,
    ) -> None:
        super().__init__()
        self.region_grid, self.num_granularities = region_grid, num_granularities
        is_code = positions >= 0
        specials = (contents >= 0).nonzero()[:, 0]
        self.num_specials = len(specials)
        #: Tokens of the longest image: every region at the finest granularity.
        self.max_tokens = self.num_specials + (region_grid[0] * region_grid[1] << 2 * (num_granularities - 1))
        regions = torch.where(is_code, _region_of(grains, positions.clamp_min(0), region_grid), -1)
        status, rules = _rules(grains, regions, num_granularities)
        tables: dict[str, Tensor] = {
            "grains": grains,
            "positions": positions,
            "contents": contents,
            "rows": rows,
            "columns": columns,
            "starts": starts,
            "specials": specials,
            "status": status,
            "rules": rules,
            "lookup": _lookup(grains, positions, region_grid),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def __len__(self) -> int:
        return len(self.grains)

    def entries_of(self, sequence: CodeSequence) -> Tensor:
        """Where each code of a sequence lies on the tape, ``(T,)`` int64."""
        regions = self.region_grid[0] * self.region_grid[1]
        return self.lookup[regions * ((1 << 2 * sequence.grains) - 1) // 3 + sequence.positions]

    def lay_out(self, sequence: CodeSequence, labels: Tensor) -> Tokens:
        """All tokens of a batch: its codes, in whatever order they come, and its special tokens.

        Args:
            sequence: Codes of ``B`` images.
            labels: ``(B,)`` int64, :data:`NULL` where an image has no class.
        """
        images, device = len(sequence), sequence.device
        lengths = sequence.lengths.long()
        total = len(sequence.codes)
        batch = torch.arange(images, device=device)
        owner = batch.repeat_interleave(lengths, output_size=total)
        special = (batch[:, None] * len(self) + self.specials).flatten()
        keys, order = torch.cat([owner * len(self) + self.entries_of(sequence), special]).sort()
        codes = torch.cat([sequence.codes, self.contents[self.specials].repeat(images)])
        entries = keys % len(self)
        shift = self.starts[entries] * labels[keys // len(self)]
        cu_seqlens = sequence.cu_seqlens + (self.num_specials - 1) * torch.arange(
            images + 1, dtype=torch.int32, device=device
        )
        read = torch.arange(len(keys) - images, device=device)
        owner = batch.repeat_interleave(lengths + self.num_specials - 1, output_size=len(read))
        return Tokens(
            codes[order] + shift,
            entries,
            self.rows[entries] + shift,
            self.columns[entries] + shift,
            read + owner,
            read - cu_seqlens[owner],
            cu_seqlens,
        )

    def to_sequence(self, contents: Tensor, order: Order) -> CodeSequence:
        """The codes on walked tapes as a coarse-to-fine sequence.

        Args:
            contents: ``(B, L)`` integers, below 0 where an entry was not taken; special entries are passed over.
            order: The order of codes within a granularity.
        """
        canonical = self._canonical(order)
        found = contents[:, canonical]
        taken = found >= 0
        entries = canonical.expand(len(contents), -1)[taken]
        ends = torch.cat([taken.new_zeros(1, dtype=torch.int64), taken.sum(1).cumsum(0)])
        return CodeSequence(
            found[taken].long(),
            self.positions[entries],
            self.grains[entries],
            ends.int(),
            self.region_grid,
            self.num_granularities,
            order,
        )

    def _canonical(self, order: Order) -> Tensor:
        """Code entries in the coarse-to-fine order of a sequence."""
        parts = [_positions(self.region_grid, g, order) for g in range(self.num_granularities)]
        regions = self.region_grid[0] * self.region_grid[1]
        offsets = [regions * (4**g - 1) // 3 for g in range(self.num_granularities)]
        return self.lookup[
            torch.cat([part + offset for part, offset in zip(parts, offsets, strict=True)]).to(self.lookup.device)
        ]


def coarse_to_fine_tape(
    region_grid: tuple[int, int], num_granularities: int, codebook_size: int, num_labels: int, order: Order
) -> Tape:
    """Start, codes and end of each granularity in turn (paper, section 3.3).

    A granularity with P cells has position tokens: cells ``0 .. P - 1``, padding ``P``, end ``P + 1`` and starts from
    ``P + 2`` on, one for each of ``num_labels`` labels; contents are numbered likewise, with K for P. The position
    embedding stacks one table for each granularity.
    """
    check_order(order)
    parts: list[dict[str, Tensor]] = []
    offset = 0
    for g in range(num_granularities):
        cells = _positions(region_grid, g, order)
        count = len(cells)
        columns = torch.cat([torch.tensor([count + 2]), cells, torch.tensor([count + 1])])
        special = torch.zeros(count + 2, dtype=torch.bool)
        special[[0, -1]] = True
        contents = torch.full_like(columns, -1)
        contents[0], contents[-1] = codebook_size + 2, codebook_size + 1
        starts = torch.zeros_like(special)
        starts[0] = True
        parts.append(
            {
                "grains": torch.full_like(columns, g),
                "positions": torch.where(special, -1, columns),
                "contents": contents,
                "rows": columns + offset,
                "columns": columns,
                "starts": starts,
            }
        )
        offset += count + 2 + num_labels
    return _join(parts, region_grid, num_granularities)


def raster_tape(region_grid: tuple[int, int], num_granularities: int, codebook_size: int) -> Tape:
    """One start, then regions in raster order, each with its codes in raster order (supplement, section 3.2).

    The last entry is an end that is no token: where a walk rests when all regions are covered.
    An entry of a region is numbered coarse to fine, ``E = (4**G - 1) / 3`` entries in all; that number is its column,
    and its row is ``region * E + number``. Starts have rows from ``regions * E + 2`` on.
    """
    regions, size = region_grid[0] * region_grid[1], (4**num_granularities - 1) // 3
    cells = [_positions(region_grid, g, "region-first").view(regions, 4**g) for g in range(num_granularities)]
    grains = torch.cat([torch.full((4**g,), g) for g in range(num_granularities)]).expand(regions, size)
    number = torch.arange(size).expand(regions, size)
    rows = torch.arange(regions)[:, None] * size + number
    start = {
        "grains": torch.tensor([0]),
        "positions": torch.tensor([-1]),
        "contents": torch.tensor([codebook_size + 2]),
        "rows": torch.tensor([regions * size + 2]),
        "columns": torch.tensor([0]),
        "starts": torch.tensor([True]),
    }
    codes = {
        "grains": grains.flatten(),
        "positions": torch.cat(cells, 1).flatten(),
        "contents": torch.full((regions * size,), -1),
        "rows": rows.flatten(),
        "columns": number.flatten(),
        "starts": torch.zeros(regions * size, dtype=torch.bool),
    }
    end = {name: table[-1:].new_tensor([-1]) for name, table in start.items()}
    end |= {"grains": start["grains"], "rows": start["rows"], "columns": start["columns"], "starts": ~start["starts"]}
    return _join([start, codes, end], region_grid, num_granularities)


def _join(parts: list[dict[str, Tensor]], region_grid: tuple[int, int], num_granularities: int) -> Tape:
    tables: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Tape(**tables, region_grid=region_grid, num_granularities=num_granularities)


def _positions(region_grid: tuple[int, int], grain: int, order: Order) -> Tensor:
    """Positions of a granularity, ``(h * w * 4**g,)``, in the order of a sequence."""
    (rows, columns), side = region_grid, 2**grain
    cells = torch.arange(rows * columns * side * side)
    if order == "row-first":
        return cells
    return cells.view(rows, side, columns, side).transpose(1, 2).flatten()


def _region_of(grains: Tensor, positions: Tensor, region_grid: tuple[int, int]) -> Tensor:
    width = region_grid[1] << grains
    return (positions // width >> grains) * region_grid[1] + (positions % width >> grains)


def _lookup(grains: Tensor, positions: Tensor, region_grid: tuple[int, int]) -> Tensor:
    """The entry of each position, granularity after granularity."""
    entries = (positions >= 0).nonzero()[:, 0]
    places = region_grid[0] * region_grid[1] * ((1 << 2 * grains[entries]) - 1) // 3 + positions[entries]
    return torch.empty_like(entries).index_copy_(0, places, entries)


def _rules(grains: Tensor, regions: Tensor, num_granularities: int) -> tuple[Tensor, Tensor]:
    """Statuses at the start, ``(L,)``, and what taking an entry does: ``(L, E, 2)`` entries and their new statuses.

    A region's finest codes are mandatory until a coarser code of it is taken; of the others only the first is
    possible, and taking it makes its companions mandatory and bans the region's other granularities.
    """
    size = (4**num_granularities - 1) // 3
    members = regions.argsort(stable=True)[int((regions < 0).sum()) :].view(-1, size)
    group = torch.arange(len(grains))[:, None].expand(-1, size).clone()
    is_code = regions >= 0
    group[is_code] = members[regions[is_code]]
    same = grains[group] == grains[:, None]
    first = torch.where(same, group, len(grains)).amin(1) == torch.arange(len(grains))
    status = torch.where(first, POSSIBLE, BANNED)
    status[(grains == num_granularities - 1) | ~is_code] = MANDATORY
    return status, torch.stack([group, torch.where(same, MANDATORY, BANNED)], -1)
