"""The specification of ``decode_attention``: append, then the causal attention of one slot at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.ops.reference.varlen_attention import varlen_attention_reference

__all__ = ["active_slots", "decode_attention_reference"]


def decode_attention_reference(
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
    """``q (B, n, H, d)`` to the same shape; writes to ``k_cache`` and ``v_cache``."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    new = q.shape[1]
    for slot, length in active_slots(cache_lengths, active):
        end = length + new
        k_cache[slot, length:end] = k_new[slot]
        v_cache[slot, length:end] = v_new[slot]
        queries, keys = (torch.tensor([0, rows], dtype=torch.int32) for rows in (new, end))
        setting = Setting(queries, keys, None, None, left=-1, right=0, scale=scale, keep=256, precision=precision)
        out[slot], _ = varlen_attention_reference(q[slot], k_cache[slot, :end], v_cache[slot, :end], setting)
    return out


def active_slots(cache_lengths: Tensor, active: Tensor | None) -> list[tuple[int, int]]:
    """``(slot, length)`` of each slot that takes part. On a GPU the host waits for the lengths."""
    lengths = enumerate(cache_lengths.tolist())
    return list(lengths) if active is None else list(itertools.compress(lengths, active.tolist()))
