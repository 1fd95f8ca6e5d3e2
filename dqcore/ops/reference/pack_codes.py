"""The specification of ``pack_codes``: find the cell of every code, and read the map there."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.layout import blocks, check_total, places

__all__ = ["pack_codes_reference"]


def pack_codes_reference(
    codes: Tensor, grain: Tensor, order: str, num_granularities: int, total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, positions and granularities ``(T,)`` int64, and ``cu_seqlens (B + 1,)`` int32."""
    where = places(grain, order, num_granularities)
    check_total("total", total, len(where.image))
    packed, positions = torch.empty_like(where.x), torch.empty_like(where.x)
    for g in range(num_granularities):
        index, image, y, x = where.of(g)
        packed[index] = blocks(codes, g, num_granularities)[image, y, 0, x, 0]
        positions[index] = y * (grain.shape[2] << g) + x
    lengths = torch.bincount(where.image, minlength=len(grain))
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    return packed, positions, where.grain.clone(), cu_seqlens
