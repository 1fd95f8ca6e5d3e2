"""``pack_features``: feature map to one vector for each code, the mean or sum of the cells that the code fills."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dqcore.codes import Order
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.extension import FEATURES, call, check_sizes, features_argument, lay_out, native
from dqcore.ops.layout import check_layout, count_codes, memory_format
from dqcore.ops.reference.pack_features import pack_features_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["Reduction", "pack_features"]

Reduction = Literal["mean", "sum"]


def pack_features(
    features: Tensor,
    grain: Tensor,
    *,
    order: Order = "row-first",
    num_granularities: int | None = None,
    reduction: Reduction = "mean",
    total: int | None = None,
) -> Tensor:
    """One vector for each code, ``packed_t = mean of features over the cells of code t``.

    Args:
        features: Feature map ``(B, D, H, W)`` on the finest grid, ``H = h * 2**(G - 1)``; float16, bfloat16, float32
            or float64; any strides, contiguous and channels-last ones without a copy.
        grain: Grain map ``(B, h, w)`` int64, values in [0, G); same device.
        order: Order of the codes, as of :func:`dqcore.pack_codes`.
        num_granularities: ``G``; by default the one that fits ``H = h * 2**(G - 1)``.
        reduction: ``"mean"`` or ``"sum"``.
        total: The number of codes ``T``, if known, so that the host need not wait for a GPU to count them. A GPU does
            not check it: if it is too large, the last vectors are undefined.

    Returns:
        ``(T, D)``, contiguous, in the features' dtype; vector t belongs to code t of the sequence.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices do not fit, or on the CPU a granularity is out of range or ``total`` is wrong.

    Gradient: :func:`expand_features` of the gradient, divided by the cells of each code for ``"mean"``.
    Determinism: a code's cells are added in raster order, in float32 for float16 and bfloat16: the same bits on every
        device, in every run and batch.
    Cost: reads the features once, writes ``T D`` elements.
    """
    check_tensor("features", features, dim=4)
    num_granularities = check_layout(grain, order, num_granularities, ("features", features))
    check_same_device(features=features, grain=grain)
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    total = count_codes(grain) if total is None else total
    packed: Tensor = torch.ops.dqcore.pack_features(
        features, grain, order, num_granularities, reduction == "mean", total
    )
    return packed


def _fake(features: Tensor, grain: Tensor, order: str, num_granularities: int, mean: bool, total: int) -> Tensor:
    return features.new_empty(total, features.shape[1])


def _extension(features: Tensor, grain: Tensor, order: str, num_granularities: int, mean: bool, total: int) -> Tensor:
    check_tensor("features", features, dim=4, dtypes=FEATURES)
    check_sizes(grain, order, num_granularities, ("features", features, 4))
    layout = lay_out(grain, order, num_granularities, "total", total)
    features = features.contiguous(memory_format=memory_format(features))
    packed = features.new_empty(total, features.shape[1])
    out = native().Packed(packed.data_ptr(), total)
    call("pack_features", features.device, layout.native, features_argument(features), out, mean)
    return packed


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, grain, *ctx.layout, ctx.mean, _ = inputs
    ctx.channels_last = memory_format(features) == torch.channels_last
    ctx.save_for_backward(grain)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (grain,) = ctx.saved_tensors
    spread = torch.ops.dqcore.expand_features(grad, grain, *ctx.layout, ctx.mean, ctx.channels_last)
    return spread, None, None, None, None, None


register(
    "pack_features",
    pack_features_reference,
    fake=_fake,
    cpu=Implementation(_extension, "extension"),
    gpu=Implementation(_extension, "extension"),
).register_autograd(_backward, setup_context=_setup_context)
