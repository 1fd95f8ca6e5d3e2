"""The specification of ``pack_features``: one granularity at a time, add up the cells of each code's block."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.layout import blocks, check_total, places

__all__ = ["pack_features_reference"]


def pack_features_reference(
    features: Tensor, grain: Tensor, order: str, num_granularities: int, mean: bool, total: int
) -> Tensor:
    """``features (B, D, H, W)`` to ``(T, D)``, added in float32 or float64."""
    where = places(grain, order, num_granularities)
    check_total("total", total, len(where.image))
    wide = features if features.dtype == torch.float64 else features.float()
    packed = wide.new_zeros(total, features.shape[1])
    for g in range(num_granularities):
        index, image, y, x = where.of(g)
        cells = blocks(wide, g, num_granularities)[image, :, y, :, x].flatten(2)  # (codes, D, cells of a block)
        sums = sum(cells.unbind(2), start=torch.zeros_like(cells[:, :, 0]))  # in raster order
        packed = packed.index_copy(0, index, sums / cells.shape[2] if mean else sums)
    return packed.to(features.dtype)
