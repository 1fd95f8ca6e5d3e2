"""The specification of ``dynamic_lookup``, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.layout import block_sum, cells_per_code, memory_format, merge_maps
from dqcore.ops.reference.nearest_code import nearest_code_reference, squared_distance

__all__ = ["dynamic_lookup_backward_reference", "dynamic_lookup_reference"]


def dynamic_lookup_reference(
    maps: list[Tensor], grain: Tensor, codebook: Tensor, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes, quantized map, error, counts and sums, all from one lookup on the finest grid.

    Every map is repeated onto the finest grid and every cell is looked up there. A code that fills n cells is then
    counted with weight 1 / n at each of them. A region whose granularity is out of range, as -1, has no code; nor has a
    vector with a NaN or an infinity.
    """
    merged = merge_maps(maps, grain)
    cells = cells_per_code(grain, len(maps))
    nearest = nearest_code_reference(merged, codebook, "exact")
    coded, cells = (cells > 0) & (nearest >= 0), cells.clamp_min(1)
    merged = merged.masked_fill(~coded[:, None], 0)
    vectors = codebook[nearest.clamp_min(0)].masked_fill(~coded[..., None], 0)  # (B, H, W, D)
    distance = squared_distance(merged.permute(0, 2, 3, 1), vectors)
    wide = torch.promote_types(merged.dtype, torch.float32)
    error = (distance / cells).masked_fill(~coded, 0).to(wide)
    straight_through = vectors.permute(0, 3, 1, 2).detach().to(merged.dtype) + (merged - merged.detach())
    quantized = straight_through.masked_fill(~coded[:, None], 0).contiguous(memory_format=memory_format(maps[-1]))
    counts, sums = error.new_zeros(0), error.new_zeros(0)
    if with_sums:
        weight = cells.flatten().to(wide).reciprocal()
        # A cell without a code is added to an extra last row of the sums, which is then cut off.
        row = torch.where(coded, nearest, len(codebook)).flatten()
        flat = merged.detach().permute(0, 2, 3, 1).flatten(0, 2).to(wide)
        sums = flat.new_zeros(len(codebook) + 1, flat.shape[1]).index_add(0, row, flat * weight[:, None])[:-1].clone()
        counts = flat.new_zeros(len(codebook) + 1).index_add(0, row, weight)[:-1].clone()
    return nearest.masked_fill(~coded, -1), quantized, error, counts, sums


def dynamic_lookup_backward_reference(
    maps: list[Tensor],
    grain: Tensor,
    codes: Tensor,
    quantized: Tensor,
    grad_quantized: Tensor | None,
    grad_error: Tensor | None,
) -> list[Tensor]:
    """Gradient of each map: block sums of ``grad_quantized``, plus ``2 (z - e) / cells`` times those of ``grad_error``.

    It is 0 where another granularity rules, and where ``codes``, of the forward pass, is -1. ``quantized`` is also the
    forward pass's result; it holds the vectors e. So a codebook that was updated in place after the forward pass does
    not change the gradient.
    """
    grads = []
    for g, values in enumerate(maps):
        repeat = 2 ** (len(maps) - 1 - g)
        wide = torch.promote_types(values.dtype, torch.float32)
        if grad_error is None:
            grad = torch.zeros(values.shape, dtype=wide, device=values.device)
        else:
            scale = block_sum(grad_error.to(wide), repeat)[:, None] * (2 / repeat**2)
            grad = (values.to(wide) - quantized[:, :, ::repeat, ::repeat]).mul_(scale)
        if grad_quantized is not None:
            grad += block_sum(grad_quantized.to(wide), repeat)
        elsewhere = (grain != g).repeat_interleave(2**g, 1).repeat_interleave(2**g, 2)
        elsewhere |= codes[:, ::repeat, ::repeat] < 0
        grads.append(grad.masked_fill_(elsewhere[:, None], 0).to(values.dtype))
    return grads
