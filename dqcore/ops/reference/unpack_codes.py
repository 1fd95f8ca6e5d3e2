"""The specification of ``unpack_codes``: one granularity at a time, fill the blocks that the positions name."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.layout import blocks

__all__ = ["unpack_codes_reference"]


def unpack_codes_reference(
    codes: Tensor,
    positions: Tensor,
    grains: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    columns: int,
    num_granularities: int,
) -> tuple[Tensor, Tensor]:
    """Code map ``(B, H, W)`` and grain map ``(B, h, w)``, int64.

    Raises:
        ValueError: On the CPU, a region is not covered exactly once.
    """
    batch, shift = len(cu_seqlens) - 1, num_granularities - 1
    code_map = codes.new_zeros(batch, rows << shift, columns << shift)
    grain_map = codes.new_zeros(batch, rows, columns)
    covered = torch.zeros_like(code_map)  # 1 + granularity of the code that fills a cell; 0 for none
    images = torch.arange(batch, device=codes.device).repeat_interleave(cu_seqlens.diff())
    for g in range(num_granularities):
        index = (grains == g).nonzero()[:, 0]
        width = columns << g
        image, y, x = images[index], positions[index] // width, positions[index] % width
        blocks(code_map, g, num_granularities)[image, y, :, x] = codes[index, None, None]
        blocks(covered, g, num_granularities)[image, y, :, x] = g + 1
        grain_map[image, y >> g, x >> g] = g
    if codes.device.type == "cpu":
        _check_coverage(images, grains, covered, grain_map, num_granularities)
    return code_map, grain_map


def _check_coverage(images: Tensor, grains: Tensor, covered: Tensor, grain_map: Tensor, num_granularities: int) -> None:
    """Raise unless all cells of a region are covered with its granularity, and an image's codes fill no cell twice."""
    uneven = blocks(covered, 0, num_granularities) != grain_map[:, :, None, :, None] + 1  # (B, h, side, w, side)
    cells = torch.zeros(len(grain_map), dtype=torch.int64)
    cells.index_add_(0, images, 1 << 2 * (num_granularities - 1 - grains))
    full = covered.shape[1] * covered.shape[2]
    wrong = uneven.flatten(1).any(1) | (cells != full)
    if bool(wrong.any()):
        image = int(wrong.nonzero()[0])
        rest = "; what is partial a prior completes: prior.generate(.., given=sequence)" if cells[image] < full else ""
        raise InputError(f"sequence: expected each region covered exactly once, image {image} differs{rest}")
