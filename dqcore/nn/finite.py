"""Vectors with a NaN or an infinity: found, reported, or taken out of a lookup."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.layout import cells_per_code, merge_maps

__all__ = ["bad_cells_of", "not_finite", "uncount", "without"]


def not_finite(maps: Sequence[Tensor], ask: bool) -> list[Tensor] | None:
    """Which vectors of each map ``(B, D, h, w)`` are not finite, ``(B, 1, h, w)`` bool.

    Args:
        maps: The maps.
        ask: Whether the host may wait for values. If so, a map whose sum is finite needs no second look: its numbers
            all are. None is returned where that holds for every map.
    """
    maps = [values.detach() for values in maps]
    if ask and all(math.isfinite(values.sum().item()) for values in maps):
        return None
    return [~values.isfinite().all(1, keepdim=True) for values in maps]


def without(maps: Sequence[Tensor], bad: Sequence[Tensor]) -> list[Tensor]:
    """The maps with zeros for some vectors, which then have no gradient."""
    return [values.masked_fill(where, 0) for values, where in zip(maps, bad, strict=True)]


def bad_cells_of(bad: Sequence[Tensor], grain: Tensor, report: bool) -> Tensor:
    """The cells ``(B, H, W)`` of the finest grid whose vector is not finite, bool.

    Args:
        bad: Which vectors of each map are not finite, ``(B, 1, h, w)``.
        grain: ``(B, h, w)``, which vectors are looked up; -1 for none.
        report: Raise if there is such a cell.

    Raises:
        InputError: how many, and where the first one is.
    """
    bad_cells = merge_maps([where.byte() for where in bad], grain)[:, 0] > 0
    if report and bool(bad_cells.any()):
        cells = cells_per_code(grain, len(bad))
        number = round(float((bad_cells / cells.clamp_min(1)).sum()))
        total = round(float(((cells > 0) / cells.clamp_min(1)).sum()))
        image, row, column = bad_cells.nonzero()[0].tolist()
        raise InputError(
            f"features: {number} of {total} vectors are not finite, the first in image {image} at row {row}, column "
            f"{column} (nonfinite='mask' leaves them out)"
        )
    return bad_cells


def uncount(counts: Tensor, codes: Tensor, bad_cells: Tensor, grain: Tensor, num_granularities: int) -> Tensor:
    """Counts ``(K,)`` of the codes, less the zero vectors that were looked up in place of those in bad cells.

    Args:
        counts: How many vectors chose each code, zero vectors included, ``(K,)``.
        codes: The codes of all cells ``(B, H, W)``.
        bad_cells: Cells whose vector is not finite, ``(B, H, W)``.
        grain: ``(B, h, w)``, -1 for regions that are not looked up.
        num_granularities: G.
    """
    share = bad_cells / cells_per_code(grain, num_granularities).clamp_min(1)
    extra = torch.zeros_like(counts).index_add(0, codes.clamp_min(0).flatten(), share.flatten().to(counts.dtype))
    return counts - extra
