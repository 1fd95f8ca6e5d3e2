"""How a codebook starts, learns and revives its unused codes: small strategies for :class:`dqcore.DynamicQuantizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dqcore.ops.code_sums import code_sums
from dqcore.ops.nearest_code import nearest_code

__all__ = ["EMA", "Codebook", "EMACodebook", "Gradient", "GradientCodebook", "KMeans", "RandomRestart", "Uniform"]


class Codebook(nn.Module):
    """K codes and a padding row, with the statistics that every way of learning keeps.

    Attributes:
        weight: ``(K + 1, D)`` float32 parameter. Row K, the padding row, is never searched or updated; it is what code
            K decodes to, a hole in a partial code map.
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
        """The term that pulls codes to their vectors, of which only the gradient counts; 0 where there is none."""
        return counts.new_zeros(())


class EMACodebook(Codebook):
    """Codes are the moving averages of the vectors that chose them (paper section 3.2; no gradient).

    Attributes:
        embed_sum: ``(K, D)`` float32, moving average of the vector sums; starts equal to the codes, as 1 vector each.
    """

    embed_sum: Tensor

    def __init__(self, size: int, dim: int, decay: float, eps: float) -> None:
        super().__init__(size, dim, decay)
        self.eps = eps
        self.weight.requires_grad_(False)
        self.register_buffer("embed_sum", torch.zeros(size, dim))

    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Move the averages and set every code to sum / size, the sizes smoothed by ``eps`` (Laplace)."""
        super().update(counts, sums)
        self.embed_sum.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        size = (self.cluster_size + self.eps) / (total + self.size * self.eps) * total
        self.codes.copy_(self.embed_sum / size[:, None])

    def replace(self, codes: Tensor, replaced: Tensor) -> None:
        """Replace codes and restart their averages, so that the next update does not undo it."""
        super().replace(codes, replaced)
        self.embed_sum.copy_(torch.where(replaced[:, None], codes, self.embed_sum))


class GradientCodebook(Codebook):
    """Codes are trained by the optimiser through ``sum_i ||sg(z_i) - e_k(i)||^2``."""

    def loss(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """A value whose gradient to ``codes`` is that of the squared error, from counts and sums alone."""
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
        decay: Share of the old average kept each batch, in [0, 1).
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
        decay: Of the moving average of cluster sizes that usage and restarts look at.
    """

    decay: float = 0.99

    def build(self, size: int, dim: int) -> Codebook:
        """A :class:`GradientCodebook`."""
        return GradientCodebook(size, dim, self.decay)


@dataclass(frozen=True)
class Uniform:
    """Start from codes drawn uniformly in ``[-1/K, 1/K]``, as VQGAN does; no data needed."""

    needs_data = False

    def __call__(self, tokens: Tensor | None, size: int, dim: int) -> Tensor:
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

    def __call__(self, tokens: Tensor | None, size: int, dim: int) -> Tensor:
        """``(size, dim)`` centres of ``tokens (n, dim)``; a centre that loses all its vectors stays where it was."""
        assert tokens is not None
        tokens = tokens.float()
        pick = torch.randperm(len(tokens), device=tokens.device)
        centres = tokens[pick[torch.arange(size, device=tokens.device) % len(tokens)]]
        if len(tokens) < size:
            centres = centres + 1e-3 * tokens.std() * torch.randn_like(centres)
        for _ in range(self.iterations):
            counts, sums = code_sums(tokens, nearest_code(tokens, centres), size)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        return centres


@dataclass(frozen=True)
class RandomRestart:
    """Replace codes that fall out of use by random vectors of the batch.

    Args:
        threshold: Share of an even use (the mean of the moving averages) below which a code is replaced, in [0, 1]. The
            released code replaces below one use a batch, which at its batch of 30 images is 1/30 of an even use.
    """

    threshold: float = 1 / 30

    def __call__(self, codebook: Codebook, candidates: Tensor) -> None:
        """Restart unused codes from ``candidates (K, D)``; the host never waits."""
        even = codebook.cluster_size.mean()
        codebook.replace(candidates, codebook.cluster_size < self.threshold * even)


def reduce_statistics(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Sum counts and sums over all processes in one flat reduction."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return counts, sums
    flat = torch.cat([counts[:, None], sums], dim=1)
    dist.all_reduce(flat)
    return flat[:, 0].contiguous(), flat[:, 1:]


def broadcast(tensor: Tensor) -> Tensor:
    """The first process's ``tensor``, on every process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
