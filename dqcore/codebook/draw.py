"""Vectors drawn from what a quantizer looks up: to start a codebook and to revive unused codes.

Which vectors are drawn depends on the state of the codebook and on where they lie in the batch, and on nothing else: no
random number is taken from PyTorch's generators. So one process and several, a batch as a whole and in parts, a forward
pass and its repetition by a checkpoint draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore.distributed import from_all_processes, num_processes, process_rank, sum_over_processes
from dqcore.ops.layout import cells_per_code, merge_maps

__all__ = ["Drawn", "Looked", "directions", "distinct", "seed_of"]

#: 2**64 over the golden ratio, as a signed number: consecutive multiples are far apart.
STEP = -0x61C8864680B583EB
LARGEST = 2**63 - 1


class Drawn(NamedTuple):
    """Vectors in random order. Shapes do not depend on values, so that a GPU needs no answer from the host.

    Attributes:
        key: ``(n,)`` int64, descending: the random numbers that chose them; -1 for fillers, which come last.
        vectors: ``(n, D)`` float32; fillers are 0.
        distance: ``(n,)`` float32, squared distance to the nearest code.
    """

    key: Tensor
    vectors: Tensor
    distance: Tensor

    @property
    def valid(self) -> Tensor:
        """Which rows are not fillers, ``(n,)`` bool."""
        return self.key >= 0

    def draw(self, number: int, seed: Tensor) -> Drawn:
        """The same: this is what a :class:`Looked` gave with this seed."""
        return self

    def and_of(self, later: Drawn, number: int) -> Drawn:
        """What a batch that has both parts gives."""
        both = Drawn(*(torch.cat(pair) for pair in zip(self, later, strict=True)))
        key, order = both.key.topk(min(number, len(both.key)))
        return Drawn(key, both.vectors[order], both.distance[order])

    def of_all_processes(self, number: int) -> Drawn:
        """The ``number`` vectors with the largest keys of all processes, the same ones on each."""
        if num_processes() == 1:
            return self
        keys = from_all_processes(F.pad(self.key, (0, number - len(self.key)), value=-1)).flatten()
        key, order = keys.topk(number)
        slot = torch.full_like(keys, number).scatter(0, order, torch.arange(number, device=keys.device))
        own = slot[process_rank() * number :][: len(self.key)]
        rows = torch.cat([self.vectors, self.distance[:, None]], dim=1)
        slots = rows.new_zeros(number + 1, rows.shape[1])
        slots[own] = rows  # the last slot takes what is left out
        rows = sum_over_processes(slots[:number])
        return Drawn(key, rows[:, :-1].contiguous(), rows[:, -1])

    def is_new(self) -> Tensor:
        """Which vectors no code has already, up to a thousandth of how far the vectors lie apart, ``(n,)`` bool."""
        number = self.valid.sum().clamp_min(1)
        away = torch.where(self.valid[:, None], self.vectors - self.vectors.sum(0) / number, 0)
        return self.valid & (self.distance > 1e-6 * (away.square().sum() / number))


class Looked(NamedTuple):
    """What a quantizer looked up in one forward pass; vectors can be drawn from it.

    Attributes:
        maps: Feature maps coarse to fine, ``(B, D, h * 2**g, w * 2**g)``.
        grain: ``(B, h, w)``; a region whose granularity is -1 has no vectors.
        hole: ``(B, H, W)`` bool, cells whose vectors are left out; or None.
        error: ``(B, H, W)``, squared distances to the nearest codes, each divided by the cells that its code fills;
            None where there are no codes yet.
        before: Cells of the finest grid that come before these in the batch: those of other parts and processes.
    """

    maps: Sequence[Tensor]
    grain: Tensor
    hole: Tensor | None
    error: Tensor | None = None
    before: Tensor | int = 0

    @property
    def cells(self) -> int:
        """Cells of the finest grid in this process's part."""
        return self.maps[-1][:, 0].numel()

    def draw(self, number: int, seed: Tensor) -> Drawn:
        """Draw without replacement from the selected vectors of this process, each with the same chance.

        Args:
            number: The most vectors to draw; fewer if the finest grid has fewer cells.
            seed: Scalar int64, see :func:`seed_of`.
        """
        selected = _corners(self.grain, len(self.maps))
        if self.hole is not None:
            selected = selected & ~self.hole
        place = torch.arange(self.cells, device=self.grain.device) + self.before
        key = (_mix(seed + place * STEP) & LARGEST).masked_fill(~selected.flatten(), -1)
        key, cell = key.topk(min(number, self.cells))
        merged = merge_maps(self.maps, self.grain) if len(self.maps) > 1 else self.maps[0]
        height, width = merged.shape[2:]
        size, width = max(1, height * width), max(1, width)
        vectors = merged.detach()[cell // size, :, cell % size // width, cell % width]
        valid = key >= 0
        return Drawn(key, torch.where(valid[:, None], vectors.float(), 0), self._distance(cell).masked_fill(~valid, 0))

    def _distance(self, cell: Tensor) -> Tensor:
        if self.error is None:
            return torch.full(cell.shape, torch.inf, device=cell.device)
        error = self.error.detach()
        if len(self.maps) > 1:
            error = error * cells_per_code(self.grain, len(self.maps))
        return error.flatten()[cell].float()


def seed_of(cluster_size: Tensor) -> Tensor:
    """A scalar int64 that differs from one training batch to the next: the sum of the averages' bits."""
    return cluster_size.float().view(torch.int32).sum()


def directions(number: int, dim: int, device: torch.device) -> Tensor:
    """Unit vectors ``(number, dim)`` float32, all different, always the same."""
    place = torch.arange(1, number * dim + 1, device=device)
    return F.normalize(_mix(place * STEP).view(number, dim).double() / 2.0**63, dim=1).float()


def distinct(vectors: Tensor, valid: Tensor) -> Tensor:
    """Which of the valid rows of ``vectors (n, D)`` are the first with their values, ``(n,)`` bool.

    Rows are compared by a 64-bit hash: two different rows count as one with a chance of ``2**-64``.
    """
    bits = (vectors.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0: both zeros have the same bits
    place = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    number = torch.arange(len(vectors), device=bits.device)
    key, order = torch.where(valid, _mix(bits + place * STEP).sum(1), number).sort(stable=True)
    again = torch.zeros_like(valid)
    again[1:] = key[1:] == key[:-1]
    return valid & ~torch.zeros_like(valid).scatter(0, order, again)


def _mix(bits: Tensor) -> Tensor:
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
