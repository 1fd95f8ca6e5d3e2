"""What a layer with a codebook does at each training batch: start its codes, take in statistics, revive codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dqcore.codebook import fused
from dqcore.codebook.draw import Drawn, Looked, seed_of
from dqcore.codebook.modules import Codebook, host_knows
from dqcore.distributed import (
    from_all_processes,
    from_first_process,
    num_processes,
    process_rank,
    sum_over_processes,
)
from dqcore.ops import Lookup

__all__ = ["Batch", "Initialisation", "Restart", "first_codes", "learn", "place_in_batch", "pull", "reduce_statistics"]

#: Vectors that k-means looks at for each code, and numbers in all of them together, at most.
SAMPLE, SAMPLE_NUMBERS = 64, 2**26


class Initialisation(Protocol):
    """How a codebook starts: :class:`dqcore.codebook.Uniform` or :class:`dqcore.codebook.KMeans`."""

    needs_data: bool

    def __call__(self, vectors: Tensor | None, size: int, dim: int, valid: Tensor | None = None) -> Tensor:
        """Codes ``(size, dim)`` from the valid rows of ``vectors (n, dim)``, or from nothing."""


class Restart(Protocol):
    """How unused codes are revived: :class:`dqcore.codebook.RandomRestart`."""

    def unused(self, codebook: Codebook) -> Tensor:
        """Which codes are to be revived, ``(K,)`` bool."""

    def __call__(self, codebook: Codebook, candidates: Tensor, valid: Tensor | None = None) -> None:
        """Replace unused codes by valid rows of ``candidates (n, D)``."""


class Batch(NamedTuple):
    """What a codebook learns from.

    Attributes:
        counts: ``(K,)``, how many vectors chose each code.
        sums: ``(K, D)``, their sums.
        source: Where vectors that may revive codes are drawn from; None if none are to be revived.
        cells: Cells of the finest grid up to the end of this pass, those of earlier parts and of all processes.
        number: Forward passes that are in it.
    """

    counts: Tensor
    sums: Tensor
    source: Looked | Drawn | None
    cells: Tensor | int = 0
    number: int = 1

    def after(self, earlier: Batch | None, codebook: Codebook) -> Batch:
        """This and the earlier parts as one, with its candidates drawn, so that the feature maps need not be kept."""
        source = self.source
        if isinstance(source, Looked):
            pool = earlier.source if earlier is not None and isinstance(earlier.source, Drawn) else None
            source = source.draw(codebook.size, seed_of(codebook.cluster_size), pool)
        if earlier is None:
            return self._replace(source=source)
        counts, sums = earlier.counts + self.counts, earlier.sums + self.sums
        return Batch(counts, sums, source, self.cells, earlier.number + self.number)


@torch.no_grad()
def learn(codebook: Codebook, batch: Batch, restart: Restart | None) -> None:
    """Update a codebook from the batches of all processes, and revive unused codes by vectors of that batch."""
    statistics = reduce_statistics(batch.counts.float(), batch.sums.float())
    if restart is None or batch.source is None:
        fused.move(codebook, *statistics)
        return
    if fused.knows_restart(codebook, restart, statistics[1]):
        source = batch.after(None, codebook).source
        assert isinstance(source, Drawn)
        fused.update_by(codebook, restart, statistics, source.of_all_processes(codebook.size))
        return
    seed = seed_of(codebook.cluster_size)  # of the state that the parts of a batch were drawn with
    codebook.update(*statistics)
    if host_knows(codebook.cluster_size) and not bool(restart.unused(codebook).any()):
        return
    drawn = batch.source.draw(codebook.size, seed).of_all_processes(codebook.size)
    restart(codebook, drawn.vectors, drawn.is_new())


def place_in_batch(looked: Looked, before: Tensor | int) -> tuple[Looked, Tensor | int]:
    """Note how many cells come before this part: ``before`` and those of earlier processes; and how many then."""
    if num_processes() == 1:
        return looked._replace(before=before), before + looked.cells
    cells = from_all_processes(torch.full((1,), looked.cells, device=looked.grain.device))
    return looked._replace(before=before + cells[: process_rank()].sum()), before + cells.sum()


def first_codes(
    initialisation: Initialisation, maps: Sequence[Tensor], grain: Tensor, hole: Tensor | None, size: int
) -> Tensor | None:
    """The codes ``(K, D)`` that a codebook starts with on every process, from the vectors of all processes.

    Returns:
        The codes; None if no process has a vector. While compiling nobody can ask for that.
    """
    dim = maps[0].shape[1]
    codes = None if hole is None else -hole.long()
    looked, cells = place_in_batch(Looked(maps, grain, codes), 0)
    number = max(size, min(SAMPLE * size, SAMPLE_NUMBERS // dim))
    if num_processes() > 1 and not torch.compiler.is_compiling():
        number = min(number, int(cells))
    drawn = looked.draw(number, torch.zeros((), dtype=torch.int64, device=grain.device)).of_all_processes(number)
    if torch.compiler.is_compiling():
        return from_first_process(initialisation(drawn.vectors, size, dim, drawn.valid))
    if number == 0 or not bool(drawn.valid.any()):
        return None
    return from_first_process(initialisation(drawn.vectors, size, dim, drawn.valid).float())


def pull(codebook: Codebook, codes: Tensor, lookup: Lookup) -> Tensor:
    """A term of value 0 whose gradient draws ``codes`` to the vectors that chose them: the mean over their numbers."""
    assert lookup.statistics is not None
    numbers = (lookup.codes >= 0).sum().clamp_min(1) * codebook.dim
    term = codebook.loss(codes, *lookup.statistics) / numbers
    return term - term.detach()


def reduce_statistics(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Counts ``(K,)`` and vector sums ``(K, D)``, float32, added up over all processes in one message."""
    if num_processes() == 1:
        return counts, sums
    total = sum_over_processes(torch.cat([counts, sums.flatten()]))
    return total[: len(counts)], total[len(counts) :].view_as(sums)
