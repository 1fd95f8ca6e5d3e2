"""``lookup_step``: a training step of a quantizer's forward pass in one call.

It runs the kernels of ``dynamic_lookup``, ``lookup_loss`` and ``codebook_update``, with the same results bit for bit.
In eager mode a GPU waits for the host, and the host checks, dispatches and records one call instead of three. Only the
quantizer calls it. Whatever looks for ops by name (compilers, profilers, dispatch modes) sees the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import checkpoint

from dqcore.ops.dynamic_lookup import check_granularities, gradients_of_maps
from dqcore.ops.lookup_loss import gradient_of_error
from dqcore.ops.registry import is_plain, is_traced

__all__ = ["LookupStep", "can_step", "lookup_step"]

State = tuple[Tensor, Tensor, Tensor, Tensor]


class LookupStep(NamedTuple):
    """What a step gives, by :func:`lookup_step` or by the ops that it stands for. Maps are on the finest grid."""

    quantized: Tensor  # (B, D, H, W), dtype and memory format of the finest map
    codes: Tensor  # (B, H, W) int64
    loss: Tensor  # the sum of the two
    commitment: Tensor  # beta times the mean squared error
    codebook: Tensor  # the mean squared error; of lookup_step without a gradient


def can_step(maps: Sequence[Tensor], grain: Tensor, state: State) -> bool:
    """Whether one call may stand for three: nothing traces or watches ops, and the kernels take such tensors.

    Inference tensors and forward-mode AD are left to the three. PyTorch refuses to record their gradient, and would do
    so here only after the codes were updated.
    """
    if is_traced() or not torch.is_grad_enabled() or maps[-1].numel() == 0 or _saving_may_fail():
        return False
    if forward_ad._current_level >= 0 or any([values.is_inference() for values in (*maps, grain)]):
        return False
    from dqcore.kernels.codes import fits

    weight = state[0]
    return is_plain((*maps, grain, *state)) and fits(weight.shape[0] - 1, weight.shape[1])


def _saving_may_fail() -> bool:
    """Whether somebody's hook saves tensors: here it would raise after the codes were moved, in the three ops before.

    That of activation checkpointing raises in no first pass.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") != checkpoint.__name__


def lookup_step(
    maps: Sequence[Tensor], grain: Tensor, state: State, commitment: float, setting: tuple[float, float, float | None]
) -> LookupStep:
    """Look up in the codes, and move them by what was found.

    Args:
        maps: Feature maps that fit each other and the codes, coarse to fine; float16, bfloat16 or float32.
        grain: Granularity of each region, ``(B, h, w)`` int64.
        state: As :func:`dqcore.ops.codebook_update` takes it, averages of the sums included.
        commitment: beta, the weight of the encoder's part of the loss.
        setting: Decay, eps and threshold, as ``codebook_update`` takes them.

    Gradient: as of the three ops, to the maps alone.
    """
    check_granularities(maps, grain)
    step = LookupStep(*_Step.apply(grain, state, commitment, setting, *maps))
    torch.autograd.graph.increment_version(state)  # kernels do not count what they write
    return step


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grain: Tensor, state: State, commitment: float, setting: tuple, *maps: Tensor
    ) -> tuple[Tensor, ...]:
        from dqcore.kernels.lookup_step import lookup_step_fwd

        with torch._C._AutoDispatchBelowAutograd():
            quantized, codes, loss, part, rest, slope = lookup_step_fwd(list(maps), grain, state, commitment, setting)
        ctx.mark_non_differentiable(codes, rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*maps, grain, quantized, codes, slope)  # as the ops do, which a checkpoint may call later
        return quantized, codes, loss, part, rest

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad_quantized, _, loss, part, _ = grads
        *maps, grain, quantized, codes, slope = ctx.saved_tensors
        grad_error = gradient_of_error(slope, codes.shape, loss, part)
        return None, None, None, None, *gradients_of_maps(maps, grain, codes, quantized, grad_quantized, grad_error)
