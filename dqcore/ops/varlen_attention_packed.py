"""``varlen_attention_packed``: :func:`dqcore.ops.varlen_attention` of queries, keys and values in one tensor.

As a transformer has them, from one product. Their gradient is then one tensor too, which the kernels write where it
belongs: the gradients of three views would be copied together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.kernels.setting import Setting
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.cpu.varlen_attention import varlen_attention_backward_cpu, varlen_attention_cpu
from dqcore.ops.reference.varlen_attention import varlen_attention_backward_reference, varlen_attention_reference
from dqcore.ops.registry import Implementation, register
from dqcore.ops.sequences import check_prefixes, check_seqlens, check_window
from dqcore.ops.varlen_attention import (
    MAX_HEAD_DIM,
    SETTING,
    Precision,
    close_channels,
    fake,
    forward_gpu,
    setting_of,
)

__all__ = ["varlen_attention_packed"]


def varlen_attention_packed(
    qkv: Tensor,
    cu_seqlens: Tensor,
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    prefix_lengths: Tensor | None = None,
    dropout_seed: Tensor | None = None,
    precision: Precision = "tf32x3",
) -> Tensor:
    """``varlen_attention(*qkv.unbind(1), cu_seqlens, ...)``, in the same bits.

    Args:
        qkv: Queries, keys and values, ``(T, 3, H, d)``, d up to 256; float16, bfloat16, float32 or float64; channels
            that lie apart cost a copy.
        cu_seqlens: Sequence b is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``; ``(B + 1,)`` int32.
        dropout_p: This and all others are as there.
        softmax_scale: As there.
        causal: As there.
        window_size: As there.
        prefix_lengths: As there.
        dropout_seed: As there.
        precision: As there.

    Returns:
        ``(T, H, d)`` in ``qkv``'s dtype.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes, devices or values do not fit.

    Gradient: to ``qkv``, once; on a GPU without a copy of it. Determinism and cost: as there.
    """
    _check(qkv, cu_seqlens, prefix_lengths)
    q, ends, window = qkv.detach().select(1, 0), (cu_seqlens, cu_seqlens), check_window(window_size, causal)
    setting = setting_of(q, ends, prefix_lengths, dropout_p, dropout_seed, window, softmax_scale, precision)
    out: Tensor = torch.ops.dqcore.varlen_attention_packed(close_channels(qkv), *setting)[0]
    return out


def _check(qkv: Tensor, cu_seqlens: Tensor, prefix_lengths: Tensor | None) -> None:
    check_tensor("qkv", qkv, dim=4)
    _, three, heads, channels = qkv.shape
    if three != 3 or heads < 1 or not 1 <= channels <= MAX_HEAD_DIM:
        expected = f"(T, 3, H, d), at least one head of 1 to {MAX_HEAD_DIM} channels"
        raise InputError(f"qkv: expected shape {expected}, got {tuple(qkv.shape)}")
    check_seqlens("cu_seqlens", cu_seqlens, qkv.shape[0])
    check_same_device(qkv=qkv, cu_seqlens=cu_seqlens)
    check_prefixes(prefix_lengths, cu_seqlens.shape[0] - 1, qkv=qkv)


def _apart(run: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation of attention, called with queries, keys and values in one tensor."""
    return lambda qkv, *setting: run(*qkv.unbind(1), Setting(*setting))


def _together(run: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation of its gradient, whose results are then copied together."""
    return lambda grad, qkv, out, lse, *setting: torch.stack(
        run(grad, *qkv.unbind(1), out, lse, Setting(*setting)), dim=1
    )


def _fake(qkv: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    return fake(qkv.select(1, 0))


def _fake_backward(grad: Tensor, qkv: Tensor, *args: object) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _triton_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, *setting: Any) -> Tensor:
    from dqcore.kernels.varlen_attention_backward import varlen_attention_bwd

    together = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    (q, k, v), (grad_q, grad_k, grad_v) = qkv.unbind(1), together.unbind(1)
    varlen_attention_bwd(grad, q, k, v, out, lse, Setting(*setting), (grad_q, grad_k, grad_v))
    return together


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, *tensors, left, right, scale, keep, precision = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.numbers = (left, right, scale, keep, precision)
    ctx.save_for_backward(qkv, *output, *tensors)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    saved, numbers = ctx.saved_tensors, ctx.numbers
    return (torch.ops.dqcore.varlen_attention_packed_backward(close_channels(grad), *saved, *numbers), *[None] * 9)


register(
    "varlen_attention_packed",
    _apart(varlen_attention_reference),
    schema=f"(Tensor qkv, {SETTING}) -> (Tensor, Tensor)",
    fake=_fake,
    cpu=Implementation(_apart(varlen_attention_cpu), "torch"),
    gpu=Implementation(_apart(forward_gpu), "triton"),
).register_autograd(_backward, setup_context=_setup_context)

register(
    "varlen_attention_packed_backward",
    _together(varlen_attention_backward_reference),
    schema=f"(Tensor grad, Tensor qkv, Tensor out, Tensor lse, {SETTING}) -> Tensor",
    fake=_fake_backward,
    cpu=Implementation(_together(varlen_attention_backward_cpu), "torch"),
    gpu=Implementation(_triton_backward, "triton"),
)
