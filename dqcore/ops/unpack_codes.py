"""``unpack_codes``: code sequence -> code map and grain map; positions alone say where each code belongs."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.ops.extension import call, codes_argument, native
from dqcore.ops.layout import blocks
from dqcore.ops.registry import Implementation, register

__all__ = ["unpack_codes", "unpack_codes_reference"]


def unpack_codes(sequence: CodeSequence) -> tuple[Tensor, Tensor]:
    """Code map and grain map of a sequence, ``map[block of position_t] = code_t``.

    The inverse of :func:`dqcore.pack_codes`. The order of an image's codes does not matter.

    Args:
        sequence: Codes of ``B`` images that cover each region exactly once, with codes of one granularity.

    Returns:
        The code map ``(B, H, W)`` on the finest grid, where a coarse code fills its whole block, and the grain map
        ``(B, h, w)``; both int64.

    Raises:
        TypeError: ``sequence`` is no :class:`CodeSequence`.
        ValueError: On the CPU, the sequence leaves a region uncovered or covers one twice. On a GPU the host does not
            wait to look: uncovered cells get code 0, and of two codes on one cell either may stay.

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


def unpack_codes_reference(
    codes: Tensor,
    positions: Tensor,
    grains: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    columns: int,
    num_granularities: int,
) -> tuple[Tensor, Tensor]:
    """The specification: a granularity at a time, fill the blocks that the positions name."""
    code_map, grain_map = _fake(codes, positions, grains, cu_seqlens, rows, columns, num_granularities)
    covered = torch.zeros_like(code_map)
    code_map.zero_()
    grain_map.zero_()
    images = torch.arange(len(grain_map), device=codes.device).repeat_interleave(cu_seqlens.diff())
    for g in range(num_granularities):
        slot = (grains == g).nonzero()[:, 0]
        width = columns << g
        image, y, x = images[slot], positions[slot] // width, positions[slot] % width
        blocks(code_map, g, num_granularities)[image, y, :, x] = codes[slot, None, None]
        blocks(covered, g, num_granularities)[image, y, :, x] = g + 1
        grain_map[image, y >> g, x >> g] = g
    if codes.device.type == "cpu":
        _check_coverage(images, grains, covered, grain_map, num_granularities)
    return code_map, grain_map


def _check_coverage(images: Tensor, grains: Tensor, covered: Tensor, grain_map: Tensor, num_granularities: int) -> None:
    """Each cell covered, with its region's granularity, by as many codes as there are."""
    uneven = blocks(covered, 0, num_granularities) != grain_map[:, :, None, :, None] + 1  # (B, h, side, w, side)
    cells = torch.zeros(len(grain_map), dtype=torch.int64)
    cells.index_add_(0, images, 1 << 2 * (num_granularities - 1 - grains))
    wrong = uneven.flatten(1).any(1) | (cells != covered.shape[1] * covered.shape[2])
    if bool(wrong.any()):
        image = int(wrong.nonzero()[0])
        raise InputError(f"sequence: expected each region covered exactly once, image {image} differs")


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
    return codes.new_empty(images, rows << shift, columns << shift), codes.new_empty(images, rows, columns)


def _extension(
    codes: Tensor,
    positions: Tensor,
    grains: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    columns: int,
    num_granularities: int,
) -> tuple[Tensor, Tensor]:
    kept = codes.contiguous(), positions.contiguous(), grains.contiguous(), cu_seqlens.contiguous()
    code_map, grain_map = _fake(*kept, rows, columns, num_granularities)
    if codes.device.type != "cpu":
        code_map.zero_()
        grain_map.zero_()
    # Only the places of the images' codes are known here; the grain map is the result.
    layout = native().Layout(0, 0, 0, kept[3].data_ptr(), len(grain_map), rows, columns, num_granularities)
    sequence = codes_argument(*kept[:3])
    valid = call("unpack_codes", codes.device, layout, sequence, code_map.data_ptr(), grain_map.data_ptr())
    if valid is False:  # the reference says what is wrong
        return unpack_codes_reference(codes, positions, grains, cu_seqlens, rows, columns, num_granularities)
    return code_map, grain_map


register(
    "unpack_codes",
    unpack_codes_reference,
    fake=_fake,
    cpu=Implementation(_extension, "extension"),
    cuda=Implementation(_extension, "extension"),
)
