"""What a layer with state needs under activation checkpointing, which computes a forward pass again in the backward.

The second pass must see the state of the first one and must not change it once more. A pass is a second one if it runs
inside a backward pass. That holds for both of PyTorch's checkpoints and for those of other libraries, because each of
them runs it from a node of the graph. Which first pass it repeats is told by its input, which is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FirstPass", "FirstPasses", "in_backward", "substitute"]

#: First passes that are kept at most: those whose backward pass may be still to come.
KEPT = 16


def in_backward() -> bool:
    """Whether this code runs inside a backward pass; never while compiling, where nobody can tell."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _may_be_repeated() -> bool:
    """Whether a checkpoint may have started this pass: without a graph (reentrant), or with hooks on what it saves."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def substitute(codes: Tensor, values: Tensor) -> Tensor:
    """``values`` in the place of ``codes``: a gradient goes to ``codes``. Saves nothing for the backward pass."""
    return _Substitute.apply(codes, values) if codes.requires_grad else values


@dataclass
class FirstPass:
    """A forward pass that may be computed again.

    Attributes:
        codes: ``(K, D)``, the codes that it looked up in, a copy.
        learn: Whether it learned.
        mark: Sums over the features, which tell them from those of other passes.
        repeated: Whether it was computed again.
    """

    codes: Tensor
    learn: bool
    mark: Tensor
    repeated: bool = False


class FirstPasses:
    """The forward passes of one layer that may be computed again. Empty unless a checkpoint may be at work.

    A pass that was repeated is dropped when the next new one comes. A copy or a pickle of this is empty.
    """

    def __init__(self) -> None:
        self._passes: list[FirstPass] = []

    def keep(self, maps: Sequence[Tensor], codes: Tensor, learn: bool) -> None:
        """Remember a new pass, if it may be computed again."""
        if not _may_be_repeated():
            return
        passes = [known for known in self._passes if not known.repeated][1 - KEPT :]
        self._passes = [*passes, FirstPass(codes.detach().clone(), learn, _mark(maps))]

    def find(self, maps: Sequence[Tensor]) -> FirstPass | None:
        """The pass that these features repeat; None if no pass was kept.

        Among passes with equal features it is the latest that was not repeated yet, because a backward pass goes from
        the last to the first.
        """
        mark = _mark(maps)
        known = [one for one in self._passes if one.mark.shape == mark.shape]
        if not known:
            return None
        distance = [0.0]
        if len(known) > 1:
            distance = torch.stack([(one.mark - mark).abs().sum() for one in known]).tolist()
        least = min(distance)
        nearest = [one for one, far in zip(known, distance, strict=True) if far == least]
        found = ([one for one in nearest if not one.repeated] or nearest)[-1]
        found.repeated = True
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstPasses:
        return FirstPasses()

    def __reduce__(self) -> tuple[type[FirstPasses], tuple[()]]:
        return FirstPasses, ()


def _mark(maps: Sequence[Tensor]) -> Tensor:
    """Sums of each map over its cells and over its channels, float64."""
    values = [values.detach() for values in maps]
    sums = [part.sum(axes, dtype=torch.float64).flatten() for part in values for axes in ((0, 2, 3), (1, 3))]
    return torch.cat(sums).nan_to_num()
