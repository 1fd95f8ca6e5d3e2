"""The specification of ``expand_features``: find the code of every cell, and read its vector."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.layout import blocks, check_total, places

__all__ = ["expand_features_reference"]


def expand_features_reference(
    packed: Tensor, grain: Tensor, order: str, num_granularities: int, divide: bool, channels_last: bool
) -> Tensor:
    """``packed (T, D)`` to ``(B, D, H, W)``; with ``divide`` a vector is divided among the cells that it fills."""
    where = places(grain, order, num_granularities)
    check_total("packed", packed.shape[0], len(where.image))
    if divide:
        wide = packed if packed.dtype == torch.float64 else packed.float()
        packed = (wide / (1 << 2 * (num_granularities - 1 - where.grain))[:, None]).to(packed.dtype)
    images, rows, columns = grain.shape
    index_map = grain.new_empty(images, rows << (num_granularities - 1), columns << (num_granularities - 1))
    for g in range(num_granularities):
        index, image, y, x = where.of(g)
        blocks(index_map, g, num_granularities)[image, y, :, x] = index[:, None, None]
    features = packed[index_map].permute(0, 3, 1, 2)
    return features.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
