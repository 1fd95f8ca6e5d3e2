"""The tape: every token that an image may have, in the order in which a prior reads and draws them.

::

    coarse to fine, 1 x 2 regions:  start  0 1  end   start  0 1 2 3 4 5 6 7  end
    granularity                     0      0 0  0     1      1 1 1 1 1 1 1 1  1

An *entry* is a place on the tape: one code position of one granularity, or a special token. An image takes some of
the entries, always forwards, so its positions ascend. Every region must be covered by the codes of exactly one
granularity. Two tables keep this rule: ``status`` says what an entry is at the start (:data:`BANNED`,
:data:`POSSIBLE` or :data:`MANDATORY`), and ``rules`` says which statuses change when an entry is taken.

The two tapes of our priors are built in :mod:`dqcore.models.tapes`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.codes import CodeSequence, Order
from dqcore.kernels.tape import BANNED, MANDATORY, POSSIBLE
from dqcore.nn.constants import KeepsTables

__all__ = ["BANNED", "MANDATORY", "NULL", "POSSIBLE", "Entries", "Tape", "Tokens", "positions_in_order"]

#: The label of an image without a class. A start token has content ``K + 2 + label``, so this label gives it ``K``:
#: the padding token, which packed sequences do not need for anything else.
NULL = -2


class Entries(NamedTuple):
    """What is known of each of ``L`` entries before any image is.

    Attributes:
        grains: Granularity, ``(L,)`` int64.
        positions: Position of a code, -1 of special tokens, ``(L,)`` int64.
        contents: Content of a special token, -1 of codes and of an end that is not a token, ``(L,)`` int64.
        rows: Row of the position embedding, ``(L,)`` int64.
        columns: Class of the position head, ``(L,)`` int64.
        starts: Which entries are start tokens; the image's label is added to their content, row and column,
            ``(L,)`` bool.
    """

    grains: Tensor
    positions: Tensor
    contents: Tensor
    rows: Tensor
    columns: Tensor
    starts: Tensor


class Tokens(NamedTuple):
    """The tokens of ``B`` images, packed; ``N`` in all.

    Attributes:
        contents: Code or special content, ``(N,)`` int64.
        entries: Place on the tape, ascending within an image, ``(N,)`` int64.
        rows: Row of the position embedding, ``(N,)`` int64.
        columns: Class of the position head, ``(N,)`` int64.
        inputs: Indices of the tokens that the model reads, which are all but each image's last: ``(N - B,)`` int64.
            At token ``i`` the model predicts token ``i + 1``.
        steps: Row of the step embedding: index of each input in its image, ``(N - B,)`` int64.
        cu_seqlens: Where each image's inputs begin, ``(B + 1,)`` int32.
    """

    contents: Tensor
    entries: Tensor
    rows: Tensor
    columns: Tensor
    inputs: Tensor
    steps: Tensor
    cu_seqlens: Tensor


class Tape(KeepsTables):
    """``L`` entries, their rules, and the way from code sequences to the tape and back.

    Its tables are buffers, so they move with the model, but they are not saved.

    Args:
        entries: The entries in order.
        region_grid: Regions ``(h, w)``.
        num_granularities: ``G``.
        order: Order of the codes within a granularity.
        coarse_to_fine: Whether each granularity stands on the tape as a whole, the coarser before the finer.

    Attributes:
        specials: Entries of the special tokens, ``(num_specials,)`` int64.
        status: Statuses before anything is taken, ``(L,)`` int64.
        rules: For each entry the ``E = (4**G - 1) / 3`` entries of its region and the status that each of them gets
            when the entry is taken, ``(L, E, 2)`` int64.
        lookup: The entry of each position, granularity after granularity, ``(h * w * E,)`` int64.
        max_tokens: Tokens of the longest image, which has every region at the finest granularity.
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
        entries: Entries,
        region_grid: tuple[int, int],
        num_granularities: int,
        order: Order = "row-first",
        *,
        coarse_to_fine: bool = False,
    ) -> None:
        super().__init__()
        self.region_grid, self.num_granularities = region_grid, num_granularities
        self.order, self.coarse_to_fine = order, coarse_to_fine
        is_code = entries.positions >= 0
        specials = (entries.contents >= 0).nonzero()[:, 0]
        self.num_specials = len(specials)
        self.max_tokens = self.num_specials + (region_grid[0] * region_grid[1] << 2 * (num_granularities - 1))
        regions = _region_of(entries.grains, entries.positions.clamp_min(0), region_grid)
        status, rules = _rules(entries.grains, torch.where(is_code, regions, -1), num_granularities)
        codes = is_code.nonzero()[:, 0]
        index = _index_of(entries.grains[codes], entries.positions[codes], region_grid)
        lookup = torch.empty_like(codes).index_copy_(0, index, codes)
        tables = {**entries._asdict(), "specials": specials, "status": status, "rules": rules, "lookup": lookup}
        tables["starts"] = entries.starts.long()  # AveragedModel cannot average bool
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def __len__(self) -> int:
        return len(self.grains)

    def entries_of(self, sequence: CodeSequence) -> Tensor:
        """Where each code of a sequence lies on the tape, ``(T,)`` int64."""
        return self.lookup[_index_of(sequence.grains, sequence.positions, self.region_grid)]

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
        image_of_code = batch.repeat_interleave(lengths, output_size=total)
        # A token's key is its image times L plus its entry: in the order of the keys they lie image after image.
        special = (batch[:, None] * len(self) + self.specials).flatten()
        keys, order = torch.cat([image_of_code * len(self) + self.entries_of(sequence), special]).sort()
        codes = torch.cat([sequence.codes, self.contents[self.specials].repeat(images)])
        entries = keys % len(self)
        shift = self.starts[entries] * labels[keys // len(self)]
        cu_seqlens = sequence.cu_seqlens + (self.num_specials - 1) * torch.arange(
            images + 1, dtype=torch.int32, device=device
        )
        read = torch.arange(len(keys) - images, device=device)
        image_of_input = batch.repeat_interleave(lengths + self.num_specials - 1, output_size=len(read))
        return Tokens(
            codes[order] + shift,
            entries,
            self.rows[entries] + shift,
            self.columns[entries] + shift,
            read + image_of_input,  # the last token of each image is not read
            read - cu_seqlens[image_of_input],
            cu_seqlens,
        )

    def to_sequence(self, contents: Tensor, order: Order) -> CodeSequence:
        """The codes that images have taken from the tape, as a coarse-to-fine sequence.

        Args:
            contents: ``(B, L)`` integers, below 0 where an entry was not taken; special entries are ignored.
            order: The order of codes within a granularity.
        """
        sorted_entries = self._coarse_to_fine_entries(order)
        found = contents[:, sorted_entries]
        taken = found >= 0
        entries = sorted_entries.expand(len(contents), -1)[taken]
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

    def _coarse_to_fine_entries(self, order: Order) -> Tensor:
        """Entries of the codes, coarse to fine and in this order within a granularity."""
        parts = [positions_in_order(self.region_grid, g, order) for g in range(self.num_granularities)]
        grains = torch.cat([torch.full_like(part, g) for g, part in enumerate(parts)])
        return self.lookup[_index_of(grains, torch.cat(parts), self.region_grid).to(self.lookup.device)]


def positions_in_order(region_grid: tuple[int, int], granularity: int, order: Order) -> Tensor:
    """Positions of a granularity, ``(h * w * 4**granularity,)``, in the order of a sequence."""
    (rows, columns), side = region_grid, 2**granularity
    cells = torch.arange(rows * columns * side * side)
    if order == "row-first":
        return cells
    return cells.view(rows, side, columns, side).transpose(1, 2).flatten()


def _index_of(grains: Tensor, positions: Tensor, region_grid: tuple[int, int]) -> Tensor:
    """Index of codes among the positions of all granularities, coarsest granularity first."""
    return region_grid[0] * region_grid[1] * ((1 << 2 * grains) - 1) // 3 + positions


def _region_of(grains: Tensor, positions: Tensor, region_grid: tuple[int, int]) -> Tensor:
    width = region_grid[1] << grains
    return (positions // width >> grains) * region_grid[1] + (positions % width >> grains)


def _rules(grains: Tensor, regions: Tensor, num_granularities: int) -> tuple[Tensor, Tensor]:
    """The tables ``status`` and ``rules`` of a tape.

    As long as nothing of a region is taken, its finest codes are mandatory, and of each coarser granularity the first
    code is possible. Taking a code makes the region's other codes of its granularity mandatory, and bans the region's
    codes of all other granularities.

    Args:
        grains: Granularity of each entry, ``(L,)``.
        regions: Region of each code, -1 of special tokens, ``(L,)``.
        num_granularities: ``G``.
    """
    size = (4**num_granularities - 1) // 3
    members = regions.argsort(stable=True)[int((regions < 0).sum()) :].view(-1, size)  # entries of each region
    group = torch.arange(len(grains))[:, None].expand(-1, size).clone()
    is_code = regions >= 0
    group[is_code] = members[regions[is_code]]
    same = grains[group] == grains[:, None]
    first = torch.where(same, group, len(grains)).amin(1) == torch.arange(len(grains))
    status = torch.where(first, POSSIBLE, BANNED)
    status[(grains == num_granularities - 1) | ~is_code] = MANDATORY
    return status, torch.stack([group, torch.where(same, MANDATORY, BANNED)], -1)
