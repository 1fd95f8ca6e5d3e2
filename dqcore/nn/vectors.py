"""The vectors of a quantizer's maps: projected, scaled as the metric wants, and without those that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqcore.backends import has_values, host_knows
from dqcore.nn.finite import bad_cells_of, not_finite, without
from dqcore.ops.registry import is_traced

__all__ = ["Vectors", "finite_vectors", "marked_vectors", "project"]


class Vectors(NamedTuple):
    """What is looked up.

    Attributes:
        maps: The maps, coarse to fine, projected and scaled as the metric wants.
        bad_cells: Cells of the finest grid ``(B, H, W)`` whose vectors were not finite and are 0 in ``maps``; None if
            there are none, or they are marked.
        dtype: Of the projected maps.
        marked: Whether vectors that are not finite are left to the lookup, which gives those code -1.
    """

    maps: list[Tensor]
    bad_cells: Tensor | None
    dtype: torch.dtype
    marked: bool = False


def project(projection: Any, values: Tensor) -> Tensor:
    """A 1 x 1 convolution, or nothing, over a map ``(B, D, H, W)`` that may have no cells."""
    if values.numel() or not isinstance(projection, nn.Conv2d):
        return projection(values)
    # A convolution refuses an empty grid. Its weights must still take part: DDP waits for their gradient.
    return F.linear(values.movedim(1, -1), projection.weight.flatten(1), projection.bias).movedim(-1, 1)


def marked_vectors(maps: Sequence[Tensor], projection: nn.Module) -> list[Tensor]:
    """The projected maps, with NaN for vectors that are not finite: the lookup gives those code -1.

    The projection gets zeros in their place, so that its gradient stays finite. One pass over a map finds them.
    """
    out = []
    for values in maps:
        fine = torch.linalg.vector_norm(values.detach(), torch.inf, 1, keepdim=True) < torch.inf
        out.append(torch.where(fine, project(projection, torch.where(fine, values, 0)), torch.nan))
    return out


def finite_vectors(maps: Sequence[Tensor], grain: Tensor, projection: nn.Module, metric: Any, report: bool) -> Vectors:
    """The maps as they are looked up, with zeros for vectors that are not finite.

    Args:
        maps: The maps of the input, coarse to fine.
        grain: ``(B, h, w)``, -1 for regions that are not looked up.
        projection: What leads to the codes' dimension, or nothing.
        metric: How vectors are scaled before they are compared.
        report: Raise if a vector that is looked up is not finite. On a GPU the host waits to know.
    """
    report &= has_values(maps[-1])
    ask = not is_traced() and (report or host_knows(maps[-1]))
    bad = not_finite(maps, ask)
    if bad is not None:
        maps = without(maps, bad)
    maps = [project(projection, values) for values in maps]
    dtype = maps[-1].dtype
    if not isinstance(projection, nn.Identity) and (overflow := not_finite(maps, ask)) is not None:
        bad = overflow if bad is None else [a | b for a, b in zip(bad, overflow, strict=True)]
    maps = [metric(values, 1) for values in maps]
    if bad is None:
        return Vectors(maps, None, dtype)  # the host knows that all are finite
    return Vectors(without(maps, bad), bad_cells_of(bad, grain, report), dtype)
