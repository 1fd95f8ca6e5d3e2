"""``unpack_codes``: code sequence to code map and grain map; positions alone say where each code belongs."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.extension import call, check_grid, codes_argument, native
from dqcore.ops.reference.unpack_codes import unpack_codes_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["unpack_codes"]


def unpack_codes(sequence: CodeSequence) -> tuple[Tensor, Tensor]:
    """Code map and grain map of a sequence, ``map[block of position_t] = code_t``.

    The inverse of :func:`dqcore.pack_codes`. The order of an image's codes does not matter.

    Args:
        sequence: Codes of ``B`` images. The codes of one granularity cover a region, and cover it exactly once.

    Returns:
        The code map ``(B, H, W)`` on the finest grid, where a coarse code fills its whole block, and the grain map
        ``(B, h, w)``; both int64.

    Raises:
        TypeError: ``sequence`` is not a :class:`CodeSequence`.
        ValueError: On the CPU, a region is not covered, or covered twice. A GPU does not check this, since the host
            would have to wait: there an uncovered cell gets code 0, and a cell with two codes gets one of them.

    Gradient: none (integer output).
    Cost: each code is read once and each cell written once.
    """
    if not isinstance(sequence, CodeSequence):
        raise TypeError(f"sequence: expected a CodeSequence, got {type(sequence).__name__}")
    maps: tuple[Tensor, Tensor] = torch.ops.dqcore.unpack_codes(
        sequence.codes,
        sequence.positions,
        sequence.grains,
        sequence.cu_seqlens,
        *sequence.region_grid,
        sequence.num_granularities,
    )
    return maps


def _fake(
    codes: Tensor,
    positions: Tensor,
    grains: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    columns: int,
    num_granularities: int,
) -> tuple[Tensor, Tensor]:
    images, shift = cu_seqlens.shape[0] - 1, num_granularities - 1
    return codes.new_empty(images, rows * 2**shift, columns * 2**shift), codes.new_empty(images, rows, columns)


def _extension(
    codes: Tensor,
    positions: Tensor,
    grains: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    columns: int,
    num_granularities: int,
) -> tuple[Tensor, Tensor]:
    for name, tensor in (("codes", codes), ("positions", positions), ("grains", grains)):
        check_tensor(name, tensor, dim=1, dtypes=(torch.int64,))
        if len(tensor) != len(codes):
            raise InputError(f"{name}: expected {len(codes)} of them, as codes has, got {len(tensor)}")
    check_tensor("cu_seqlens", cu_seqlens, dim=1, dtypes=(torch.int32,))
    if len(cu_seqlens) == 0:
        raise InputError("cu_seqlens: expected at least one number, got none")
    check_same_device(codes=codes, positions=positions, grains=grains, cu_seqlens=cu_seqlens)
    check_grid(len(cu_seqlens) - 1, rows, columns, num_granularities)
    kept = codes.contiguous(), positions.contiguous(), grains.contiguous(), cu_seqlens.contiguous()
    code_map, grain_map = _fake(*kept, rows, columns, num_granularities)
    if codes.device.type != "cpu":
        code_map.zero_()
        grain_map.zero_()
    # The pointers to grain map and layout are 0: csrc reads only where each image's codes begin, from cu_seqlens.
    layout = native().Layout(0, 0, 0, kept[3].data_ptr(), len(grain_map), rows, columns, num_granularities)
    sequence = codes_argument(*kept[:3])
    valid = call("unpack_codes", codes.device, layout, sequence, code_map.data_ptr(), grain_map.data_ptr())
    if valid is False:  # the reference finds out what is wrong, and raises
        return unpack_codes_reference(codes, positions, grains, cu_seqlens, rows, columns, num_granularities)
    return code_map, grain_map


register(
    "unpack_codes",
    unpack_codes_reference,
    fake=_fake,
    cpu=Implementation(_extension, "extension"),
    gpu=Implementation(_extension, "extension"),
)
