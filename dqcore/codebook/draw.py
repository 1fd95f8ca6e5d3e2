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
from dqcore.ops.draw_vectors import draw_vectors
from dqcore.ops.reference.codebook_update import distinct, is_new, seed_of
from dqcore.ops.reference.draw_vectors import draw, mix, multiples

__all__ = ["Drawn", "Looked", "directions", "distinct", "seed_of"]


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
        """Itself: so a :class:`dqcore.codebook.learning.BatchStatistics` may hold this or a :class:`Looked`."""
        return self

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
        return is_new(self.valid, self.vectors, self.distance)


class Looked(NamedTuple):
    """What a quantizer looked up in one forward pass; vectors can be drawn from it.

    Attributes:
        maps: Feature maps coarse to fine, ``(B, D, h * 2**g, w * 2**g)``.
        grain: ``(B, h, w)``; a region whose granularity is -1 has no vectors.
        codes: ``(B, H, W)`` int64, negative at cells whose vectors are left out; None for none.
        error: ``(B, H, W)``, squared distances to the nearest codes, each divided by the cells that its code fills;
            None where there are no codes yet.
        before: Cells of the finest grid that come before these in the batch: those of other parts and processes.
    """

    maps: Sequence[Tensor]
    grain: Tensor
    codes: Tensor | None
    error: Tensor | None = None
    before: Tensor | int = 0

    @property
    def cells(self) -> int:
        """Cells of the finest grid in this process's part."""
        return self.maps[-1][:, 0].numel()

    def draw(self, number: int, seed: Tensor, pool: Drawn | None = None) -> Drawn:
        """Draw without replacement from the selected vectors of this process, each with the same chance.

        Args:
            number: The most vectors to draw; fewer if the finest grid has fewer cells.
            seed: Scalar int64, see :func:`seed_of`.
            pool: What earlier parts of the batch gave: the result is what a batch that has them all gives.
        """
        if self.codes is None or self.error is None:
            return Drawn(*draw(self.maps, self.grain, self.codes, self.error, self.before, number, seed))
        before, earlier = (0, self.before) if isinstance(self.before, Tensor) else (self.before, None)
        given = (self.maps, self.grain, self.codes, self.error, seed, number)
        return Drawn(*draw_vectors(*given, before=before, earlier=earlier, pool=pool or ()))


def directions(number: int, dim: int, device: torch.device) -> Tensor:
    """Unit vectors ``(number, dim)`` float32, all different, always the same."""
    place = torch.arange(1, number * dim + 1, device=device)
    return F.normalize(mix(multiples(place)).view(number, dim).double() / 2.0**63, dim=1).float()
