"""``pack_codes``: code map and grain map to code sequence, from the coarsest granularity to the finest."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.codes import CodeSequence, Order
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.extension import call, check_sizes, codes_argument, lay_out
from dqcore.ops.layout import check_layout, count_codes
from dqcore.ops.reference.pack_codes import pack_codes_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["pack_codes"]


def pack_codes(
    codes: Tensor, grain: Tensor, order: Order = "row-first", num_granularities: int | None = None
) -> CodeSequence:
    """Code sequence of a batch, ``codes[t] = map[y_t, x_t]`` at the top-left cell of each code's block.

    Coarse codes come before finer ones, as in the paper (section 3.3), but for any number of granularities, and without
    special tokens or padding. :func:`dqcore.unpack_codes` is the inverse.

    Args:
        codes: Code map ``(B, H, W)`` int64 on the finest grid, ``H = h * 2**(G - 1)``; a code fills its whole block.
        grain: Grain map ``(B, h, w)`` int64, values in [0, G); same device.
        order: ``"row-first"``, row-major over the grid of each granularity; ``"region-first"``, regions in raster
            order and each region's codes in raster order.
        num_granularities: ``G``; by default the one that fits ``H = h * 2**(G - 1)``.

    Returns:
        A :class:`CodeSequence` of T codes on the same device.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices do not fit, or on the CPU a granularity is out of range.

    Gradient: none (integer output).
    Cost: one prefix scan of the grain map, then each code is read once. On a GPU the host waits once, for T.
    """
    check_tensor("codes", codes, dim=3, dtypes=(torch.int64,))
    num_granularities = check_layout(grain, order, num_granularities, ("codes", codes))
    check_same_device(codes=codes, grain=grain)
    fields: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.dqcore.pack_codes(
        codes, grain, order, num_granularities, count_codes(grain)
    )
    return CodeSequence(*fields, (grain.shape[1], grain.shape[2]), num_granularities, order)


def _fake(
    codes: Tensor, grain: Tensor, order: str, num_granularities: int, total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packed, positions, grains = (codes.new_empty(total) for _ in range(3))
    return packed, positions, grains, codes.new_empty(grain.shape[0] + 1, dtype=torch.int32)


def _extension(
    codes: Tensor, grain: Tensor, order: str, num_granularities: int, total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_tensor("codes", codes, dim=3, dtypes=(torch.int64,))
    check_sizes(grain, order, num_granularities, ("codes", codes, 3))
    layout = lay_out(grain, order, num_granularities, "total", total)
    codes = codes.contiguous()
    packed, positions, grains = (codes.new_empty(total) for _ in range(3))
    call("pack_codes", codes.device, layout.native, codes.data_ptr(), codes_argument(packed, positions, grains))
    return packed, positions, grains, layout.cu_seqlens


register(
    "pack_codes",
    pack_codes_reference,
    fake=_fake,
    cpu=Implementation(_extension, "extension"),
    gpu=Implementation(_extension, "extension"),
)
