"""Decoding on the CPU: PyTorch's flash attention on views of each active slot's cache, which is never copied."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.ops.cpu.varlen_attention import grouped, mask_of, split_heads
from dqcore.ops.decode_attention import active_slots
from dqcore.ops.sequences import Sequence


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
