"""What a layer with a codebook does at each training batch: start its codes, take in statistics, revive codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dqcore.backends import has_values, host_knows
from dqcore.codebook import fused
from dqcore.codebook.draw import Drawn, Looked, seed_of
from dqcore.codebook.modules import Codebook
from dqcore.distributed import (
    from_all_processes,
    from_first_process,
    num_processes,
    process_rank,
    sum_over_processes,
)
from dqcore.ops import Lookup

__all__ = [
    "BatchStatistics",
    "Initialisation",
    "Restart",
    "first_codes",
    "learn",
    "place_in_batch",
    "pull",
    "reduce_statistics",
]

#: K-means looks at this many vectors for each code, at most, and at vectors of this many numbers together.
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


class BatchStatistics(NamedTuple):
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

    def after(self, earlier: BatchStatistics | None, codebook: Codebook) -> BatchStatistics:
        """This and the earlier parts as one, with its candidates drawn, so that the feature maps need not be kept."""
        source = self.source
        if isinstance(source, Looked):
            pool = earlier.source if earlier is not None and isinstance(earlier.source, Drawn) else None
            source = source.draw(codebook.size, seed_of(codebook.cluster_size), pool)
        if earlier is None:
            return self._replace(source=source)
        counts, sums = earlier.counts + self.counts, earlier.sums + self.sums
        return BatchStatistics(counts, sums, source, self.cells, earlier.number + self.number)


@torch.no_grad()
def learn(codebook: Codebook, batch: BatchStatistics, restart: Restart | None) -> None:
    """Update a codebook from the batches of all processes, and revive unused codes by vectors of that batch.

    The op of :mod:`dqcore.codebook.fused` does both where it knows the codebook; else PyTorch's operations do.
    """
    statistics = reduce_statistics(batch.counts.float(), batch.sums.float())
    if restart is None or batch.source is None:
        _learn_alone(codebook, statistics)
    elif fused.can_update_by(codebook, restart, statistics[1]):
        source = batch.after(None, codebook).source
        assert isinstance(source, Drawn)
        fused.update_by(codebook, restart, statistics, source.of_all_processes(codebook.size))
    else:
        _learn_and_revive(codebook, statistics, restart, batch.source)


def _learn_alone(codebook: Codebook, statistics: tuple[Tensor, Tensor]) -> None:
    """Update a codebook of which no code is revived."""
    if fused.can_update_by(codebook, None, statistics[1]):
        fused.update_by(codebook, None, statistics, None)
    else:
        codebook.update(*statistics)


def _learn_and_revive(
    codebook: Codebook, statistics: tuple[Tensor, Tensor], restart: Restart, source: Looked | Drawn
) -> None:
    """Update a codebook, then revive its unused codes, by operations of PyTorch."""
    seed = seed_of(codebook.cluster_size)  # before the update: the parts of a batch were drawn with this state
    codebook.update(*statistics)
    if host_knows(codebook.cluster_size) and not bool(restart.unused(codebook).any()):
        return
    drawn = source.draw(codebook.size, seed).of_all_processes(codebook.size)
    restart(codebook, drawn.vectors, drawn.is_new())


def place_in_batch(looked: Looked, before: Tensor | int) -> tuple[Looked, Tensor | int]:
    """Tell a part of a batch where in the batch it lies.

    Args:
        looked: The part of this process.
        before: Cells of the finest grid in earlier parts, of all processes.

    Returns:
        The part with the number of cells before it, those of lower ranks included; and the cells up to its end.
    """
    if num_processes() == 1:
        return looked._replace(before=before), before + looked.cells
    cells = from_all_processes(torch.full((1,), looked.cells, device=looked.grain.device))
    return looked._replace(before=before + cells[: process_rank()].sum()), before + cells.sum()


def first_codes(
    initialisation: Initialisation, maps: Sequence[Tensor], grain: Tensor, bad_cells: Tensor | None, size: int
) -> Tensor | None:
    """The codes ``(K, D)`` that a codebook starts with on every process, from the vectors of all processes.

    Args:
        initialisation: How it starts.
        maps: Feature maps coarse to fine.
        grain: ``(B, h, w)``, -1 for regions without vectors.
        bad_cells: Cells ``(B, H, W)`` whose vector is not finite; None for none.
        size: K.

    Returns:
        The codes; None if no process has a vector. Without values, as in a compiled graph, always codes.
    """
    dim = maps[0].shape[1]
    codes = None if bad_cells is None else -bad_cells.long()
    looked, cells = place_in_batch(Looked(maps, grain, codes), 0)
    number = max(size, min(SAMPLE * size, SAMPLE_NUMBERS // dim))
    if num_processes() > 1 and has_values(grain):
        number = min(number, int(cells))
    drawn = looked.draw(number, torch.zeros((), dtype=torch.int64, device=grain.device)).of_all_processes(number)
    if not has_values(grain):
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
