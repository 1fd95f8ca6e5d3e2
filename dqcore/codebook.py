"""How a codebook starts, learns and revives its unused codes: small strategies for :class:`dqcore.DynamicQuantizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dqcore.distributed import num_processes, sum_over_processes
from dqcore.ops.code_sums import code_sums
from dqcore.ops.nearest_code import nearest_code

__all__ = ["EMA", "Codebook", "EMACodebook", "Gradient", "GradientCodebook", "KMeans", "RandomRestart", "Uniform"]


class Codebook(nn.Module):
    """K codes and one padding row, with the statistics that every way of learning keeps.

    Attributes:
        weight: ``(K + 1, D)`` float32 parameter. Row K is the padding row: it is never searched and never updated.
            Index K marks a hole in a partial code map, and decodes to this row.
        cluster_size: ``(K,)`` float32, moving average of how many vectors of a batch chose each code; starts at 1.
        idle: ``(K,)`` int64, training batches since each code was last chosen.
    """

    weight: nn.Parameter
    cluster_size: Tensor
    idle: Tensor

    def __init__(self, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.size, self.dim, self.decay = size, dim, decay
        self.weight = nn.Parameter(torch.zeros(size + 1, dim))
        self.register_buffer("cluster_size", torch.ones(size))
        self.register_buffer("idle", torch.zeros(size, dtype=torch.int64))

    @property
    def codes(self) -> Tensor:
        """The codes alone, ``(K, D)``."""
        return self.weight[: self.size]

    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Take in one batch's counts ``(K,)`` and vector sums ``(K, D)``."""
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.idle.add_(1).masked_fill_(counts > 0, 0)

    def replace(self, codes: Tensor, replaced: Tensor) -> None:
        """Set the codes marked in ``replaced (K,)`` to the rows of ``codes (K, D)``, as if each had one vector."""
        with torch.no_grad():
            self.codes.copy_(torch.where(replaced[:, None], codes, self.codes))
        self.cluster_size.masked_fill_(replaced, 1)

    def loss(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """A term whose gradient pulls codes to their vectors; its value means nothing. 0 if codes have no gradient.

        Args:
            codes: ``(K, D)``, the codes, with gradient.
            counts: ``(K,)``, how many vectors chose each code.
            sums: ``(K, D)``, the sum of the vectors that chose each code.
        """
        return counts.new_zeros(())


class EMACodebook(Codebook):
    """Codes are the moving averages of the vectors that chose them (paper section 3.2; no gradient).

    Attributes:
        embed_sum: ``(K, D)`` float32, moving average of the vector sums; starts equal to the codes, as if each had been
            chosen by one vector.
    """

    embed_sum: Tensor

    def __init__(self, size: int, dim: int, decay: float, eps: float) -> None:
        super().__init__(size, dim, decay)
        self.eps = eps
        self.weight.requires_grad_(False)
        self.register_buffer("embed_sum", torch.zeros(size, dim))

    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Move the averages, then set every code to its sum over its size, which ``eps`` smooths (Laplace)."""
        super().update(counts, sums)
        self.embed_sum.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        size = (self.cluster_size + self.eps) / (total + self.size * self.eps) * total
        self.codes.copy_(self.embed_sum / size[:, None])

    def replace(self, codes: Tensor, replaced: Tensor) -> None:
        """Replace codes and restart their averages; the next update would else bring the old codes back."""
        super().replace(codes, replaced)
        self.embed_sum.copy_(torch.where(replaced[:, None], codes, self.embed_sum))


class GradientCodebook(Codebook):
    """Codes are trained by the optimiser through ``sum_i ||sg(z_i) - e_k(i)||^2``."""

    def loss(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """A term with the squared error's gradient to ``codes``, which needs the counts and sums alone."""
        pull = 2 * (counts[:, None] * codes - sums).detach()
        return (pull * codes).sum()


class Learning(Protocol):
    """How a codebook learns."""

    def build(self, size: int, dim: int) -> Codebook:
        """An uninitialised codebook that learns this way."""


@dataclass(frozen=True)
class EMA:
    """Learn by exponential moving averages.

    Args:
        decay: Share of the old average that each batch keeps, in [0, 1).
        eps: Laplace smoothing of the cluster sizes.
    """

    decay: float = 0.99
    eps: float = 1e-5

    def build(self, size: int, dim: int) -> Codebook:
        """An :class:`EMACodebook`."""
        return EMACodebook(size, dim, self.decay, self.eps)


@dataclass(frozen=True)
class Gradient:
    """Learn by gradient descent.

    Args:
        decay: Decay of the moving average of cluster sizes, which usage and restarts are computed from.
    """

    decay: float = 0.99

    def build(self, size: int, dim: int) -> Codebook:
        """A :class:`GradientCodebook`."""
        return GradientCodebook(size, dim, self.decay)


@dataclass(frozen=True)
class Uniform:
    """Start from codes drawn uniformly in ``[-1/K, 1/K]``, as VQGAN does; no data needed."""

    needs_data = False

    def __call__(self, vectors: Tensor | None, size: int, dim: int) -> Tensor:
        """Draw ``(size, dim)`` codes."""
        return torch.empty(size, dim).uniform_(-1 / size, 1 / size)


@dataclass(frozen=True)
class KMeans:
    """Start from the centres of a few rounds of k-means on the first training batch.

    Args:
        iterations: Rounds of Lloyd's algorithm.
    """

    iterations: int = 10
    needs_data = True

    def __call__(self, vectors: Tensor | None, size: int, dim: int) -> Tensor:
        """``(size, dim)`` centres of ``vectors (n, dim)``; a centre that loses all its vectors stays where it was."""
        assert vectors is not None
        vectors = vectors.float()
        pick = torch.randperm(len(vectors), device=vectors.device)
        centres = vectors[pick[torch.arange(size, device=vectors.device) % len(vectors)]]
        if len(vectors) < size:
            centres = centres + 1e-3 * vectors.std() * torch.randn_like(centres)
        for _ in range(self.iterations):
            counts, sums = code_sums(vectors, nearest_code(vectors, centres), size)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        return centres


@dataclass(frozen=True)
class RandomRestart:
    """Replace codes that fall out of use by random vectors of the batch.

    Args:
        threshold: In [0, 1]. A code is replaced when its moving average of uses falls below this share of the mean over
            all codes. The released code replaces a code that is used less than once in a batch; at its batch of 30
            images that is 1/30 of the mean.
    """

    threshold: float = 1 / 30

    def __call__(self, codebook: Codebook, candidates: Tensor) -> None:
        """Restart unused codes from ``candidates (K, D)``, without making the CPU wait for the GPU."""
        even = codebook.cluster_size.mean()
        codebook.replace(candidates, codebook.cluster_size < self.threshold * even)


def reduce_statistics(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Counts ``(K,)`` and vector sums ``(K, D)``, float32, added up over all processes in one message."""
    if num_processes() == 1:
        return counts, sums
    total = sum_over_processes(torch.cat([counts[:, None], sums], dim=1))
    return total[:, 0].contiguous(), total[:, 1:]
