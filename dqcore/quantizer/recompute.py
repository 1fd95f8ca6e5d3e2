"""What a layer with state needs under activation checkpointing, which computes a forward pass again in the backward.

The second pass must see the state of the first one and must not change it once more. A pass is a second one if it runs
inside a backward pass (:func:`dqcore.ops.registry.in_backward`). That holds for both of PyTorch's checkpoints and for
those of other libraries, because each of them runs it from a node of the graph. Which first pass it repeats is
recognised by its input. That is the same bit for bit, unless a kernel before it adds up in an order that varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["FirstPass", "FirstPasses", "substitute"]

#: The most first passes that are kept: of passes without a graph, which perhaps no backward pass follows, and with one.
KEPT_WITHOUT_GRAPH, KEPT_WITH_GRAPH = 16, 64
#: How far the marks of a pass and its repetition may lie apart, as a share of the mark.
APART = 1e-3


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
        codes: ``(K, D)``, the codes that it looked up in, a copy; passes between which they did not change share it.
        version: How often the codes had been written to.
        learn: Whether it learned.
        mark: Sums over the features, which tell them from those of other passes.
        repeated: Whether it was computed again.
    """

    codes: Tensor
    version: int
    learn: bool
    mark: Tensor
    repeated: bool = False


class FirstPasses:
    """The forward passes of one layer that may be computed again. Empty unless a checkpoint may be at work.

    A pass that was repeated is dropped when the next new one comes. A copy or a pickle of this is empty.
    """

    def __init__(self) -> None:
        self._passes: list[FirstPass] = []
        self._forgotten = False  # whether one was dropped that was not repeated

    def keep(self, maps: Sequence[Tensor], codes: Tensor, learn: bool) -> None:
        """Remember a new pass, if it may be computed again."""
        if not _may_be_repeated():
            return
        passes = [known for known in self._passes if not known.repeated]
        most = KEPT_WITH_GRAPH if torch.is_grad_enabled() else KEPT_WITHOUT_GRAPH
        self._forgotten = len(passes) >= most or (self._forgotten and bool(passes))
        last, codes = passes[-1] if passes else None, codes.detach()
        same = last is not None and last.version == codes._version and last.codes.shape == codes.shape
        if codes.device.type == "cpu":
            same = same and last is not None and torch.equal(codes, last.codes)  # writes by ``.data`` count no version
        copy = last.codes if same and last is not None else codes.clone()
        self._passes = [*passes[1 - most :], FirstPass(copy, codes._version, learn, _mark(maps))]

    def find(self, maps: Sequence[Tensor]) -> FirstPass | None:
        """The pass that these features repeat; None if there is none, so that this is a new one.

        Raises:
            InputError: No kept pass has these features, but it may be one that was dropped because there were too many.

        Among passes with equal features it is the latest that was not repeated yet, because a backward pass goes from
        the last to the first.
        """
        mark = _mark(maps)
        known = [one for one in self._passes if one.mark.shape == mark.shape]
        if not known:
            return None
        distance = [0.0]
        if len(known) > 1 or self._forgotten or mark.device.type == "cpu":  # else nobody waits for a GPU
            distance = torch.stack([(one.mark - mark).abs().sum() for one in known]).tolist()
        least = min(distance)
        if least and least > APART * float(mark.abs().sum()):
            if self._forgotten:
                raise InputError("features: a checkpoint repeats one of too many passes before a backward pass")
            return None
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
