"""How a codebook starts, learns and revives its unused codes: small strategies for :class:`dqcore.DynamicQuantizer`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dqcore.backends import has_values, host_knows
from dqcore.codebook.draw import directions, distinct
from dqcore.codebook.modules import Codebook, EMACodebook, GradientCodebook
from dqcore.errors import InputError, at_least
from dqcore.fields import as_float, check_fields
from dqcore.ops.code_sums import code_sums
from dqcore.ops.nearest_code import nearest_code
from dqcore.ops.reference.codebook_update import revive

__all__ = ["EMA", "PAPER", "Gradient", "KMeans", "Learning", "RandomRestart", "Uniform"]


class Learning(Protocol):
    """How a codebook learns."""

    def build(self, size: int, dim: int) -> Codebook:
        """An uninitialised codebook that learns this way."""


def _set_floats(strategy: Any, *names: str) -> None:
    """Make these numbers floats, whatever kind of number they are; raise :class:`InputError` where one is none."""
    for name in names:
        object.__setattr__(strategy, name, as_float(**{name: getattr(strategy, name)}))


def _set_decay(strategy: Any) -> None:
    _set_floats(strategy, "decay")
    if not 0 <= strategy.decay <= 1:  # NaN is none of these
        raise InputError(f"decay: expected a number in [0, 1], got {strategy.decay}")


@dataclass(frozen=True)
class EMA:
    """Learn by exponential moving averages.

    Args:
        decay: Share of the old average that each update keeps, in [0, 1]; with 1 codes stay where they started.
        eps: Laplace smoothing of the cluster sizes; 0 for as little as keeps the codes finite.
        every: Training batches that make one update: with gradient accumulation over n batches, ``every=n`` gives the
            codebook of one batch that is n times as large. Statistics wait in memory only: a checkpoint between two
            updates does not hold them.
    """

    decay: float = 0.99
    eps: float = 1e-5
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(1, every=self.every)
        _set_decay(self)
        _set_floats(self, "eps")
        if not 0 <= self.eps < float("inf"):
            raise InputError(f"eps: expected a number from 0 up, got {self.eps}")

    def build(self, size: int, dim: int) -> Codebook:
        """An :class:`EMACodebook`."""
        return EMACodebook(size, dim, self.decay, max(self.eps, 1e-30), self.every)


@dataclass(frozen=True)
class Gradient:
    """Learn by gradient descent.

    Args:
        decay: Decay of the moving average of cluster sizes, which usage and restarts are computed from.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        _set_decay(self)

    def build(self, size: int, dim: int) -> Codebook:
        """A :class:`GradientCodebook`."""
        return GradientCodebook(size, dim, self.decay)


@dataclass(frozen=True)
class Uniform:
    """Start from codes drawn uniformly in ``[-1/K, 1/K]``, as VQGAN does; no data needed."""

    needs_data = False

    def __call__(self, vectors: Tensor | None, size: int, dim: int, valid: Tensor | None = None) -> Tensor:
        """Draw ``(size, dim)`` codes."""
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        return torch.empty(size, dim, dtype=dtype).uniform_(-1 / size, 1 / size)


@dataclass(frozen=True)
class KMeans:
    """Start from the centres of a few rounds of k-means on the first training batch.

    Args:
        iterations: Rounds of Lloyd's algorithm.

    A batch with fewer distinct vectors than codes gives one code to each of its vectors, and a warning. The other codes
    lie close to a vector each, all in different places: they are unused until the features move.
    """

    iterations: int = 10
    needs_data = True

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(0, iterations=self.iterations)

    def __call__(self, vectors: Tensor | None, size: int, dim: int, valid: Tensor | None = None) -> Tensor:
        """The centres of ``vectors``.

        Args:
            vectors: ``(n, dim)`` in random order.
            size: K.
            dim: D.
            valid: ``(n,)`` bool, the rows that count; at least one.

        Returns:
            ``(size, dim)`` float32; a centre that loses all its vectors stays where it was.
        """
        assert vectors is not None and len(vectors)
        vectors = vectors.float()
        valid = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device) if valid is None else valid
        centres = self._first_centres(vectors, size, valid)
        for _ in range(self.iterations):
            codes = torch.where(valid, nearest_code(vectors, centres), -1)
            counts, sums = code_sums(vectors, codes, size)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        return centres

    def _first_centres(self, vectors: Tensor, size: int, valid: Tensor) -> Tensor:
        """The first ``size`` distinct vectors; where there are fewer, different points around each of them."""
        fresh = distinct(vectors, valid)
        number = fresh.sum()
        if has_values(vectors) and vectors.device.type != "meta" and int(number) < size:
            warnings.warn(f"KMeans: {int(number)} distinct vectors for {size} codes", stacklevel=2)
        order = (~fresh).byte().argsort(stable=True)
        index = torch.arange(size, device=vectors.device)
        centres = vectors[order[index % number.clamp_min(1)]]
        # Radii differ by more than the last digits of the vectors, so that no two points coincide.
        largest = torch.where(valid[:, None], vectors, 0).abs().max()
        away = torch.where(valid[:, None], vectors - centres[0], 0).square().sum() / valid.sum().clamp_min(1)
        spread = (away / vectors.shape[1]).sqrt()
        radius = torch.maximum(1e-3 * spread, 4 * size * torch.finfo(torch.float32).eps * largest)
        radius = torch.where(radius > 0, radius, 1e-3) * (1 + index / size)
        around = centres + directions(len(centres), centres.shape[1], centres.device) * radius[:, None]
        return torch.where((index < number)[:, None], centres, around)


@dataclass(frozen=True)
class RandomRestart:
    """Replace codes that fall out of use by random vectors of the batch.

    Args:
        threshold: In [0, 1]. A code is replaced when its moving average of uses falls below this share of the mean over
            all codes. The released code replaces a code that is used less than once in a batch; at its batch of 30
            images that is 1/30 of the mean.

    Each vector revives one code at most, and none if a code in use has its values already. So a batch with fewer
    distinct vectors than unused codes leaves some of them for the next batch.
    """

    threshold: float = 1 / 30

    def __post_init__(self) -> None:
        _set_floats(self, "threshold")
        if not 0 <= self.threshold <= 1:  # NaN is none of these
            raise InputError(f"threshold: expected a share in [0, 1], got {self.threshold}")

    def unused(self, codebook: Codebook) -> Tensor:
        """Which codes are to be replaced, ``(K,)`` bool."""
        return codebook.cluster_size < self.threshold * codebook.cluster_size.mean()

    def __call__(self, codebook: Codebook, candidates: Tensor, valid: Tensor | None = None) -> None:
        """Restart unused codes, without making the CPU wait for the GPU.

        Args:
            codebook: Whose codes to restart.
            candidates: ``(n, D)`` vectors in random order.
            valid: ``(n,)`` bool, the rows that may become codes; None for all.
        """
        if len(candidates) == 0:
            return
        if valid is None:
            valid = torch.ones(len(candidates), dtype=torch.bool, device=candidates.device)
        candidates, unused = candidates.to(codebook.weight.dtype), self.unused(codebook)
        fresh = self._fresh(codebook.codes.detach(), ~unused, candidates, valid)
        if host_knows(unused):
            chosen, rows = candidates[fresh], unused.nonzero()[:, 0]
            codebook.replace_rows(chosen[: len(rows)], rows[: len(chosen)])
            return
        codebook.replace(*revive(unused, candidates, fresh))

    def _fresh(self, codes: Tensor, used: Tensor, candidates: Tensor, valid: Tensor) -> Tensor:
        """The first candidates with their values, which no code in use has."""
        if host_knows(used):
            # Most often the candidates differ in their first value, and no code has it.
            first = candidates[valid, 0]
            used = used & torch.isin(codes[:, 0], first)
            codes, used = codes[used], used[used]
            if len(codes) == 0 and len(first.unique()) == len(first):
                return valid
        return distinct(torch.cat([codes, candidates]), torch.cat([used, valid]))[len(codes) :]


#: The paper's settings of a quantizer, as arguments of its constructor.
PAPER: dict[str, Any] = {
    "commitment": 0.25,
    "learning": EMA(decay=0.99),
    "initialisation": Uniform(),
    "restart": None,
}
