"""The input of a quantizer: checked by the names that its user knows, and brought into one layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.nn.layouts import MAP, Layout, layout_of, memory_format_of, pyramid
from dqcore.ops.checks import check_tensor
from dqcore.ops.registry import is_traced

__all__ = ["Arranged", "arrange", "check_code_map"]

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Arranged(NamedTuple):
    """The input of a quantizer, checked, as feature maps.

    Attributes:
        maps: Coarse to fine, ``(B, dim, h * 2**g, w * 2**g)``.
        grain: ``(B, h, w)`` int64.
        mask: ``(B, h, w)`` bool, or None.
        layout: How the input lay.
        rows: The sizes of all dimensions of its grid but the last.
    """

    maps: list[Tensor]
    grain: Tensor
    mask: Tensor | None
    layout: Layout
    rows: tuple[int, ...]

    @property
    def selected(self) -> Tensor:
        """The grain map with -1 where the mask is False."""
        return self.grain if self.mask is None else torch.where(self.mask, self.grain, -1)

    def restore(self, quantized: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """A quantized map and a code map in the layout of the input, and the map in its memory format."""
        if memory_format_of(self.maps[-1]) is torch.channels_last:
            quantized = quantized.contiguous(memory_format=torch.channels_last)
        return self.layout.restore(quantized, self.rows), self.layout.restore(codes, self.rows)


class QuantizerLike(Protocol):
    """A quantizer, as the checks of its input see it."""

    dim: int
    num_granularities: int
    channel_last: bool
    codebook: Any
    codebook_size: int


def arrange(
    features: Tensor | Sequence[Tensor],
    grain: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    layer: QuantizerLike,
) -> Arranged:
    """Check the arguments of a quantizer, and bring them into one layout. See :class:`dqcore.DynamicQuantizer`."""
    dim, num_granularities, device = layer.dim, layer.num_granularities, layer.codebook.weight.device
    if isinstance(features, Tensor):
        if features.layout is not torch.strided or features.is_nested:
            _refuse("features", features)
        layout = layout_of(features.dim(), layer.channel_last)
        _check_features(features, layout, layer)
        rows = tuple(features.movedim(layout.channel, 1).shape[2:-1]) if features.dim() > 4 else ()
        maps = pyramid(layout.to_map(features), num_granularities)
    else:
        layout, rows, maps = MAP, (), _checked_maps(features, dim, num_granularities)
    if maps[0].device != device:
        raise InputError(f"features: expected device {device}, as the codebook, got {maps[0].device}")
    if grain is None and num_granularities == 1:
        grain = maps[-1].new_zeros((maps[-1].shape[0], *maps[-1].shape[2:]), dtype=torch.int64)
    else:
        grain = _checked_grain(grain, maps, layout)
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor of bool, got {type(mask).__name__}")
    if lengths is not None:
        mask = _with_lengths(mask, lengths, maps[-1], layout)
    elif mask is not None:
        mask = layout.to_grid(mask) if mask.dim() == layout.dim - 1 else mask
    if mask is not None:
        check_tensor("mask", mask, dim=3, dtypes=(torch.bool,))
        if mask.shape != grain.shape:
            raise InputError(f"mask: expected shape {tuple(grain.shape)}, as the grid, got {tuple(mask.shape)}")
        if mask.device != grain.device:
            raise InputError(f"mask: expected device {grain.device}, as features, got {mask.device}")
    return Arranged(maps, grain, mask, layout, rows)


def _check_features(features: Tensor, layout: Layout, layer: QuantizerLike) -> None:
    """Raise unless one tensor is features of a layout that the quantizer takes."""
    shape, dim, num_granularities = tuple(features.shape), layer.dim, layer.num_granularities
    known = features.dim() == 4 or (num_granularities == 1 and features.dim() >= 2)
    if not known or shape[layout.channel] != dim:
        layout = layout if known else layout_of(4, layer.channel_last)
        hint = "; channel_last=True takes such features" if not layer.channel_last and shape[-1:] == (dim,) else ""
        raise InputError(f"features: expected {layout.shape} with dim={dim}, got {shape}{hint}")
    if not features.is_floating_point():
        raise TypeError(f"features: expected floating-point numbers, got {features.dtype}")
    if num_granularities > 1:
        height, width = features.movedim(layout.channel, 1).shape[2:]
        if height % 2 ** (num_granularities - 1) or width % 2 ** (num_granularities - 1):
            multiple = f"multiples of {2 ** (num_granularities - 1)} for {num_granularities} granularities"
            raise InputError(f"features: expected height and width to be {multiple}, got {shape}")


def _refuse(name: str, values: Tensor) -> None:
    """Say what to pass instead of a nested or a sparse tensor, which PyTorch itself would refuse far from here."""
    if values.is_nested:
        raise TypeError(f"{name}: expected a plain tensor, got a nested one: pass .to_padded_tensor(0), and lengths")
    raise TypeError(f"{name}: expected a plain tensor, got {values.layout}: pass .to_dense()")


def _checked_maps(features: Any, dim: int, num_granularities: int) -> list[Tensor]:
    """The maps of a list, which fit each other."""
    wanted = f"a feature map (B, {dim}, H, W)"
    if num_granularities > 1:
        wanted = f"a list of {num_granularities} feature maps (B, {dim}, ..), coarse to fine"
    listed = isinstance(features, Sequence) or type(features).__module__.startswith("torch")
    maps = list(features) if listed and not isinstance(features, str) else []
    if len(maps) != num_granularities or not all(isinstance(values, Tensor) for values in maps):
        got = type(features).__name__
        if listed and not isinstance(features, str):
            got = str([tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps])
        raise (InputError if listed else TypeError)(f"features: expected {wanted}, got {got}")
    first = maps[0]
    for g, values in enumerate(maps):
        if values.layout is not torch.strided or values.is_nested:
            _refuse(f"features[{g}]", values)
        if values.dim() != 4 or values.shape[1] != dim:
            raise InputError(f"features[{g}]: expected (B, {dim}, H, W), got {tuple(values.shape)}")
        expected = (first.shape[0], dim, first.shape[2] * 2**g, first.shape[3] * 2**g)
        if tuple(values.shape) != expected:
            after = f"features[0] has {tuple(first.shape)}, and height and width double from map to map"
            raise InputError(f"features[{g}]: expected shape {expected}, got {tuple(values.shape)}; {after}")
        if not values.is_floating_point() or values.dtype != first.dtype:
            as_first = f"{first.dtype}, as features[0]" if first.is_floating_point() else "floating-point numbers"
            raise TypeError(f"features[{g}]: expected {as_first}, got {values.dtype}")
        if values.device != first.device:
            raise InputError(f"features[{g}]: expected device {first.device}, as features[0], got {values.device}")
    return maps


def _checked_grain(grain: Any, maps: list[Tensor], layout: Layout) -> Tensor:
    """The grain map ``(B, h, w)``, which fits the maps; its values are checked by the op."""
    expected = (maps[0].shape[0], *maps[0].shape[2:])
    wanted = f"grain: expected a grain map {expected}, int64, each region's granularity in [0, {len(maps)})"
    if not isinstance(grain, Tensor):
        raise InputError(f"{wanted}, got None") if grain is None else TypeError(f"{wanted}, got {type(grain).__name__}")
    if grain.is_floating_point() and grain.dim() == 4:
        raise InputError(f"{wanted}, got {grain.dtype} {tuple(grain.shape)}; feature maps go into one list")
    grid = layout.to_grid(grain) if grain.dim() == layout.dim - 1 else grain
    if grain.dtype != torch.int64:
        raise TypeError(f"{wanted}, got {grain.dtype}")
    if tuple(grid.shape) != expected:
        raise InputError(f"{wanted}, got {tuple(grain.shape)}")
    if grain.device != maps[0].device:
        raise InputError(f"grain: expected device {maps[0].device}, as features, got {grain.device}")
    return grid


def _with_lengths(mask: Tensor | None, lengths: Tensor, line: Tensor, layout: Layout) -> Tensor:
    """The mask ``(B, 1, N)`` of the vectors within the lengths, and within a mask."""
    if layout.dim != 3:
        raise InputError(f"lengths: expected sequences, got features with {layout.dim} dimensions")
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected {line.shape[0]} integers in a tensor, got {type(lengths).__name__}")
    if tuple(lengths.shape) != (line.shape[0],) or lengths.is_floating_point() or lengths.dtype is torch.bool:
        raise InputError(f"lengths: expected {line.shape[0]} integers, got {tuple(lengths.shape)} {lengths.dtype}")
    if lengths.device.type == "cpu" and len(lengths) and not is_traced():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > line.shape[3]:
            raise InputError(f"lengths: expected values in [0, {line.shape[3]}], got [{low}, {high}]")
    within = torch.arange(line.shape[3], device=line.device) < lengths.to(line.device)[:, None]
    return (within if mask is None else within & mask)[:, None]


def check_code_map(codes: Any, layer: QuantizerLike) -> None:
    """Raise unless a quantizer can embed these codes; the range is checked on the CPU only."""
    if not isinstance(codes, Tensor) or codes.dim() < 1 or codes.dtype not in INTEGERS:
        got = f"{tuple(codes.shape)} {codes.dtype}" if isinstance(codes, Tensor) else type(codes).__name__
        raise InputError(f"codes: expected a (B, H, W) integer code map, or (B, *grid), got {got}")
    device = layer.codebook.weight.device
    if codes.device != device:
        raise InputError(f"codes: expected device {device}, as the codebook, got {codes.device}")
    if codes.device.type == "cpu" and codes.numel() and not is_traced():
        low, high = int(codes.min()), int(codes.max())
        if low < -1 or high > layer.codebook_size:
            raise InputError(f"codes: expected values in [-1, {layer.codebook_size}], got [{low}, {high}]")
