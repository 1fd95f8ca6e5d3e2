"""What is to be drawn: the arguments of ``Prior.sample``, checked, as one value for every kind of prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.settings import Sampling

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """Samples ``first`` to ``first + B - 1`` of a seed; what the fields mean is said at ``Prior.sample``.

    :meth:`dqcore.models.priors.base.Prior.sample` makes it, and alone has the defaults and the checks.

    Attributes:
        labels: ``(B,)`` int64, :data:`dqcore.models.tape.NULL` for no class; on the prior's device, as all tensors.
        sampling: How to draw.
        seed: Sample i depends on the seed and on i alone.
        first: Index of the first sample.
        slots: Samples drawn at once, from 1 to ``B``.
        given: Images of which some regions are covered, or None.
        known: Their codes on the tape, ``(B, L)`` int64, -1 elsewhere; None without ``given``.
        closed: Granularities below this one have no codes but the given ones.
        stop_after: The last granularity that is drawn; None for the finest.
        progress: Called with the number of finished samples and the number of all.
    """

    labels: Tensor
    sampling: Sampling
    seed: int
    first: int
    slots: int
    given: CodeSequence | None
    known: Tensor | None
    closed: int
    stop_after: int | None
    progress: Callable[[int, int], object] | None

    def uniforms(self, samples: Tensor, count: int) -> Tensor:
        """``count`` random numbers for each of ``samples``, ``(n,)`` int64 counted from 0; see :func:`uniforms`."""
        return uniforms(self.seed, samples + self.first, count)
