"""What a layer with a codebook does at each training batch: start its codes, take in statistics, revive codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dqcore.codebook.draw import Drawn, draw_distinct
from dqcore.codebook.modules import Codebook
from dqcore.distributed import from_first_process, num_processes, sum_over_processes

__all__ = ["Batch", "Initialisation", "Restart", "first_codes", "learn", "reduce_statistics"]

#: Vectors that k-means looks at, for each code.
SAMPLE = 64


class Initialisation(Protocol):
    """How a codebook starts: :class:`dqcore.codebook.Uniform` or :class:`dqcore.codebook.KMeans`."""

    needs_data: bool

    def __call__(self, vectors: Tensor | None, size: int, dim: int, valid: Tensor | None = None) -> Tensor:
        """Codes ``(size, dim)`` from the valid rows of ``vectors (n, dim)``, or from nothing."""


class Restart(Protocol):
    """How unused codes are revived: :class:`dqcore.codebook.RandomRestart`."""

    def __call__(self, codebook: Codebook, candidates: Tensor, valid: Tensor | None = None) -> None:
        """Replace unused codes by valid rows of ``candidates (n, D)``."""


class Batch(NamedTuple):
    """What a codebook learns from.

    Attributes:
        counts: ``(K,)``, how many vectors chose each code.
        sums: ``(K, D)``, their sums.
        drawn: Vectors that may revive codes; None if none are to be revived.
        number: Forward passes that are in it.
    """

    counts: Tensor
    sums: Tensor
    drawn: Drawn | None
    number: int = 1

    def and_then(self, later: Batch) -> Batch:
        """Both batches as one; the vectors that may revive codes are those of the later one."""
        return Batch(self.counts + later.counts, self.sums + later.sums, later.drawn, self.number + later.number)


def learn(codebook: Codebook, batch: Batch, restart: Restart | None) -> None:
    """Update a codebook from the batches of all processes, and revive unused codes by vectors of the first process."""
    codebook.update(*reduce_statistics(batch.counts.float(), batch.sums.float()))
    if restart is not None and batch.drawn is not None:
        vectors, valid = _of_first_process(batch.drawn, codebook.size)
        restart(codebook, vectors, valid)


def first_codes(
    initialisation: Initialisation, maps: Sequence[Tensor], grain: Tensor, hole: Tensor | None, size: int
) -> Tensor | None:
    """The codes ``(K, D)`` that a codebook starts with on every process: those of the first process's vectors.

    Returns:
        The codes; None if the first process has no vector. While compiling nobody can ask for that.
    """
    drawn = draw_distinct(maps, grain, SAMPLE * size, hole)
    dim = maps[0].shape[1]
    if torch.compiler.is_compiling():
        return from_first_process(initialisation(drawn.vectors, size, dim, drawn.valid))
    own = bool(drawn.valid.any())
    if not bool(from_first_process(drawn.valid.any().float())):
        return None
    codes = initialisation(drawn.vectors, size, dim, drawn.valid) if own else drawn.vectors.new_zeros(size, dim)
    return from_first_process(codes.float())


def _of_first_process(drawn: Drawn, number: int) -> tuple[Tensor, Tensor]:
    """The first process's vectors and which are valid, filled up to ``number`` rows: the processes may have fewer."""
    if num_processes() == 1:
        return drawn.vectors, drawn.valid
    rows = torch.cat([drawn.vectors.float(), drawn.valid[:, None].float()], dim=1)
    rows = from_first_process(torch.nn.functional.pad(rows, (0, 0, 0, number - len(rows))))
    return rows[:, :-1], rows[:, -1] > 0


def reduce_statistics(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Counts ``(K,)`` and vector sums ``(K, D)``, float32, added up over all processes in one message."""
    if num_processes() == 1:
        return counts, sums
    total = sum_over_processes(torch.cat([counts[:, None], sums], dim=1))
    return total[:, 0].contiguous(), total[:, 1:]
