"""Decoding on the CPU: PyTorch's flash attention on views of the caches, which are never copied."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.cpu.varlen_attention import grouped, mask_of, split_heads
from dqcore.ops.decode_attention import active_slots
from dqcore.ops.sequences import Sequence

#: Keys are taken by the so many: a slot's sums then run in the same order whatever the longest slot is.
BLOCK = 32


def decode_attention_cpu(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    active: Tensor | None,
    scale: float,
    precision: str,
) -> Tensor:
    """:func:`dqcore.ops.decode_attention` for float16, bfloat16 and float32 on the CPU."""
    if q.shape[1] == 1 and q.shape[2] == k_new.shape[2] and len(q) > 1:
        out = _all_slots(q, k_new, v_new, k_cache, v_cache, cache_lengths, active, scale)
        if not out.isnan().any():  # hidden rows weigh 0, but 0 times a NaN left in one of them is NaN
            return out
    out = torch.zeros(q.shape, dtype=q.dtype)
    new = q.shape[1]
    for slot, length in active_slots(cache_lengths, active):
        end = length + new
        keys, values = k_cache[slot, :end], v_cache[slot, :end]
        keys[length:], values[length:] = k_new[slot], v_new[slot]
        mask = mask_of(Sequence(slice(0, new), slice(0, end), 0), -1, 0, q.dtype)
        some, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *grouped(q[slot], keys, values), 0.0, mask.causal, attn_mask=mask.bias, scale=scale
        )
        split_heads(out[slot], keys).copy_(some)
    return out


def _all_slots(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    active: Tensor | None,
    scale: float,
) -> Tensor:
    """One new code a slot: one call for all of them, with each slot's own length as a mask."""
    slots, capacity = torch.arange(len(q)), k_cache.shape[1]
    if active is not None:
        cache_lengths = cache_lengths * active
        slots = active.nonzero()[:, 0]
    places = slots, cache_lengths[slots].long()
    k_cache[places], v_cache[places] = k_new[slots, 0], v_new[slots, 0]
    longest = min(capacity, -(-(int(cache_lengths.max()) + 1) // BLOCK) * BLOCK)
    hidden = torch.arange(longest) > cache_lengths[:, None]
    bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
    keys, values = (cache[:, :longest].transpose(1, 2) for cache in (k_cache, v_cache))
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q.transpose(1, 2), keys, values, 0.0, False, attn_mask=bias, scale=scale
    )
    out = out.transpose(1, 2).contiguous()
    return out if active is None else out.masked_fill_(~active[:, None, None, None], 0.0)
