"""``expand_features``: one vector for each code to feature map, where it fills the cells of its code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqcore.codes import Order
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.extension import FEATURES, call, features_argument, lay_out, native
from dqcore.ops.layout import check_layout
from dqcore.ops.reference.expand_features import expand_features_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["expand_features"]


def expand_features(
    packed: Tensor,
    grain: Tensor,
    *,
    order: Order = "row-first",
    num_granularities: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Feature map of a packed batch, ``map[cell] = packed_t of the code t that fills the cell``.

    Args:
        packed: Vectors ``(T, D)``, vector t for code t of the sequence; float16, bfloat16, float32 or float64; any
            strides.
        grain: Grain map ``(B, h, w)`` int64, values in [0, G), with T codes in all; same device.
        order: Order of the codes, as in :func:`dqcore.pack_codes`.
        num_granularities: ``G``.
        memory_format: Of the result: ``torch.contiguous_format`` or ``torch.channels_last``.

    Returns:
        ``(B, D, h * 2**(G - 1), w * 2**(G - 1))``, the dtype of ``packed``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices do not fit, or on the CPU a granularity is out of range or T is wrong. A GPU does
            not check this: there a cell whose code is missing gets zeros.

    Gradient: :func:`pack_features` of the gradient, with ``reduction="sum"``.
    Determinism: every cell is a copy; the gradient is added in raster order.
    Cost: reads ``T D`` elements, writes the map once.
    """
    check_tensor("packed", packed, dim=2)
    num_granularities = check_layout(grain, order, num_granularities, None)
    check_same_device(packed=packed, grain=grain)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise InputError(f"memory_format: expected contiguous_format or channels_last, got {memory_format}")
    last = memory_format == torch.channels_last
    features: Tensor = torch.ops.dqcore.expand_features(packed, grain, order, num_granularities, False, last)
    return features


def _fake(
    packed: Tensor, grain: Tensor, order: str, num_granularities: int, divide: bool, channels_last: bool
) -> Tensor:
    (images, rows, columns), shift = grain.shape, num_granularities - 1
    shape = (images, packed.shape[1], rows * 2**shift, columns * 2**shift)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=packed.dtype, device=packed.device, memory_format=layout)


def _extension(
    packed: Tensor, grain: Tensor, order: str, num_granularities: int, divide: bool, channels_last: bool
) -> Tensor:
    check_tensor("packed", packed, dim=2, dtypes=FEATURES)
    check_same_device(packed=packed, grain=grain)
    layout = lay_out(grain, order, num_granularities, "packed", packed.shape[0])
    packed = packed.contiguous()
    features = _fake(packed, grain, order, num_granularities, divide, channels_last)
    vectors = native().Packed(packed.data_ptr(), packed.shape[0])
    call("expand_features", packed.device, layout.native, vectors, features_argument(features), divide)
    return features


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    packed, grain, *ctx.layout, ctx.divide, _ = inputs
    ctx.total = packed.shape[0]
    ctx.save_for_backward(grain)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (grain,) = ctx.saved_tensors
    gathered = torch.ops.dqcore.pack_features(grad, grain, *ctx.layout, ctx.divide, ctx.total)
    return gathered, None, None, None, None, None


register(
    "expand_features",
    expand_features_reference,
    fake=_fake,
    cpu=Implementation(_extension, "extension"),
    gpu=Implementation(_extension, "extension"),
).register_autograd(_backward, setup_context=_setup_context)
