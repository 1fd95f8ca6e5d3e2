"""``decode_attention``: one or a few new tokens of each slot attend to the slot's cached past and to themselves.

Dimensions: ``B`` slots, ``n`` new tokens of each, ``C`` capacity of a slot's cache, ``H`` query heads, ``Hkv`` key
heads, ``d`` channels a head.

Gradient: none. Deterministic; a slot's output does not depend on the other slots' values or on ``active``.
Cost: reads each active slot's cache once, up to its own length, and never copies it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.backends import host_knows
from dqcore.errors import InputError
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.cpu.decode_attention import decode_attention_cpu
from dqcore.ops.reference.decode_attention import active_slots, decode_attention_reference
from dqcore.ops.registry import Implementation, register
from dqcore.ops.sequences import scale_of
from dqcore.ops.varlen_attention import MAX_HEAD_DIM, Precision, check_precision, close_channels

__all__ = ["append_and_attend", "decode_attention"]


def decode_attention(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    *,
    active: Tensor | None = None,
    softmax_scale: float | None = None,
    precision: Precision = "ieee",
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """Append keys and values to the cache, and attend: ``o_i = softmax_{j <= L + i}(scale q_i . k_j) v_j``.

    Writes ``k_new[b]`` and ``v_new[b]`` to slot b of the caches from place ``L = cache_lengths[b]`` on. The lengths
    stay as they are, since the layers of a model share them: the caller adds n after the last layer.

    The caches may be narrower than the queries: bfloat16, or int8 with a scale for each token and head, the largest
    magnitude of its d channels over 127. All queries see keys and values, the new ones too, as the cache keeps them.

    Args:
        q: New queries ``(B, n, H, d)``, or ``(B, H, d)`` for n = 1; d up to 256; floating point; any strides.
        k_new: Their keys ``(B, n, Hkv, d)`` or ``(B, Hkv, d)``; Hkv divides H.
        v_new: Their values, as ``k_new``.
        k_cache: Keys so far ``(B, C, Hkv, d)``; its last dimension is contiguous. Of ``q``'s dtype, or int8, or
            bfloat16 if ``q`` is float32 or float64. **Written to.**
        v_cache: Values so far, as ``k_cache``. **Written to.**
        cache_lengths: How much of each slot's cache is in use, ``(B,)`` int32 in ``[0, C - n]``. A GPU does not check
            this: keys that do not fit are neither written nor seen.
        active: ``(B,)`` bool; a slot that is False costs nothing: its cache is left alone and its output is 0.
        softmax_scale: By default ``d ** -0.5``.
        precision: How a GPU multiplies float32 numbers, as in :func:`dqcore.ops.varlen_attention`.
        k_scales: What int8 rows of ``k_cache`` are multiplied by, ``(B, C, Hkv)`` float32. **Written to.**
        v_scales: As ``k_scales``.

    Returns:
        ``q``'s shape and dtype: what causal :func:`dqcore.ops.varlen_attention` over the whole slot, as it is kept,
            gives its last n.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes or devices do not fit, or a cache is too short (checked on the CPU only).
    """
    single = isinstance(q, Tensor) and q.dim() == 3
    if single:
        q, k_new, v_new = q[:, None], k_new[:, None], v_new[:, None]
    _check(q, k_new, v_new, k_cache, v_cache)
    _check_scales(k_scales, v_scales, k_cache)
    _check_slots(cache_lengths, active, q, k_cache)
    scale = scale_of(softmax_scale, q.shape[3])
    check_precision(precision)
    q, k_new, v_new = (close_channels(x.detach()) for x in (q, k_new, v_new))
    scales = (k_scales, v_scales)
    out = append_and_attend(q, k_new, v_new, k_cache, v_cache, cache_lengths, active, scale, precision, *scales)
    if not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled()):
        written = [x for x in (k_cache, v_cache, *scales) if x is not None]
        torch.autograd.graph.increment_version(written)  # so that autograd sees that they were written to
    return out[:, 0] if single else out


def append_and_attend(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    active: Tensor | None,
    scale: float,
    precision: Precision = "ieee",
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """:func:`decode_attention` without its checks, for callers that made the cache themselves; no gradient.

    The new queries, keys and values have four dimensions. The last stride of every tensor is 1. The versions of the
    caches are not increased, so autograd may not notice that a tensor which it saved was written to.
    """
    out: Tensor = torch.ops.dqcore.decode_attention(
        q, k_new, v_new, k_cache, v_cache, cache_lengths, active, scale, precision, k_scales, v_scales
    )
    return out


def _check(q: Tensor, k_new: Tensor, v_new: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    check_tensor("q", q, dim=4)
    batch, new, heads, dim = q.shape
    if not 1 <= dim <= MAX_HEAD_DIM:
        raise InputError(f"q: expected 1 to {MAX_HEAD_DIM} channels a head, got shape {tuple(q.shape)}")
    narrower = (torch.int8, torch.bfloat16) if q.dtype in (torch.float32, torch.float64) else (torch.int8,)
    check_tensor("k_cache", k_cache, dim=4, dtypes=(q.dtype, *narrower))
    capacity, key_heads = k_cache.shape[1:3]
    if k_cache.shape[0] != batch or k_cache.shape[3] != dim or key_heads < 1 or heads % key_heads or heads < 1:
        expected = f"{batch} slots, a number of heads that divides {heads}, and {dim} channels"
        raise InputError(f"k_cache: expected {expected}, as q has, got shape {tuple(k_cache.shape)}")
    for name, tensor, rows in (("v_cache", v_cache, capacity), ("k_new", k_new, new), ("v_new", v_new, new)):
        check_tensor(name, tensor, dim=4, dtypes=(k_cache.dtype if name == "v_cache" else q.dtype,))
        if tensor.shape != (batch, rows, key_heads, dim):
            raise InputError(f"{name}: expected shape {(batch, rows, key_heads, dim)}, got {tuple(tensor.shape)}")
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        if tensor.stride(3) != 1:
            raise InputError(f"{name}: expected a contiguous last dimension, got strides {tensor.stride()}")
    check_same_device(q=q, k_new=k_new, v_new=v_new, k_cache=k_cache, v_cache=v_cache)


def _check_scales(k_scales: Tensor | None, v_scales: Tensor | None, k_cache: Tensor) -> None:
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if (scales is None) != (k_cache.dtype != torch.int8):
            given = "None" if scales is None else "scales"
            raise InputError(
                f"{name}: expected scales for int8 caches and only for them, got {given} for {k_cache.dtype}"
            )
        if scales is None:
            continue
        check_tensor(name, scales, dim=3, dtypes=(torch.float32,))
        if scales.shape != k_cache.shape[:3]:
            raise InputError(f"{name}: expected shape {tuple(k_cache.shape[:3])}, got {tuple(scales.shape)}")
        check_same_device(k_cache=k_cache, **{name: scales})


def _check_slots(cache_lengths: Tensor, active: Tensor | None, q: Tensor, k_cache: Tensor) -> None:
    check_tensor("cache_lengths", cache_lengths, dim=1, dtypes=(torch.int32,))
    named = {"cache_lengths": cache_lengths}
    if active is not None:
        check_tensor("active", active, dim=1, dtypes=(torch.bool,))
        named["active"] = active
    check_same_device(q=q, **named)
    for name, tensor in named.items():
        if tensor.shape[0] != q.shape[0]:
            raise InputError(f"{name}: expected {q.shape[0]} values, one for each slot, got {tensor.shape[0]}")
    if not host_knows(q):
        return
    room = k_cache.shape[1] - q.shape[1]
    for slot, length in active_slots(cache_lengths, active):
        if not 0 <= length <= room:
            expected = f"lengths in [0, {room}], room for {q.shape[1]} more of {k_cache.shape[1]}"
            raise InputError(f"cache_lengths: expected {expected}, got {length} in slot {slot}")


def _fake(q: Tensor, *args: object) -> Tensor:
    return q.new_empty(q.shape)


def _triton(*args: object) -> Tensor:
    from dqcore.kernels.decode_attention import decode_attention_fwd

    return decode_attention_fwd(*args)  # type: ignore[arg-type]


register(
    "decode_attention",
    decode_attention_reference,
    fake=_fake,
    cpu=Implementation(decode_attention_cpu, "torch"),
    gpu=Implementation(_triton, "triton"),
    mutates_args=("k_cache", "v_cache", "k_scales", "v_scales"),
)
