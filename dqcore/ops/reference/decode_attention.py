"""The specification of ``decode_attention``: append, then the causal attention of one slot at a time."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.ops.reference.varlen_attention import varlen_attention_reference

__all__ = ["active_slots", "append", "cached", "decode_attention_reference", "quantized"]

#: The largest integer of a cache, and the magnitude below which a row is kept as zeros.
LARGEST, SMALLEST = 127.0, 2.0**-120


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
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """``q (B, n, H, d)`` to the same shape; writes to ``k_cache``, ``v_cache`` and their scales, if they have any.

    New tokens see themselves as the cache keeps them.
    """
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    new = q.shape[1]
    for slot, length in active_slots(cache_lengths, active):
        end = length + new
        append(k_cache, k_scales, (slot, slice(length, end)), k_new[slot])
        append(v_cache, v_scales, (slot, slice(length, end)), v_new[slot])
        queries, keys = (torch.tensor([0, rows], dtype=torch.int32) for rows in (new, end))
        setting = Setting(queries, keys, None, None, left=-1, right=0, scale=scale, keep=256, precision=precision)
        seen = (slot, slice(end))
        rows = cached(k_cache, k_scales, seen, q.dtype), cached(v_cache, v_scales, seen, q.dtype)
        some, _ = varlen_attention_reference(q[slot].to(rows[0].dtype), *rows, setting)
        out[slot] = some.to(q.dtype)
    return out


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of ``(..., d)`` as 8-bit integers and a float32 scale ``(...)``: their product is within half a scale.

    The scale of a row that has a NaN or an infinity is NaN or infinite and its integers are 0, so that their product is
    NaN. Rows whose largest magnitude is below ``2**-120`` become zeros.
    """
    rows = rows.float()
    largest = rows.abs().amax(-1)
    fits = largest.isfinite() & (largest >= SMALLEST)
    full = torch.full_like(largest, LARGEST)  # a number over a tensor would be multiplied by a rounded reciprocal
    inverse = torch.where(fits, full / largest, 0.0)
    integers = (rows * inverse[..., None]).nan_to_num(0.0).clamp(-LARGEST, LARGEST).round()
    return integers.to(torch.int8), torch.where(largest < SMALLEST, 0.0, largest * (1 / LARGEST))


def append(cache: Tensor, scales: Tensor | None, where: Any, rows: Tensor) -> None:
    """Keep rows ``(..., Hkv, d)`` at ``cache[where]``; as integers if the cache has scales, else in its dtype."""
    if scales is None:
        cache[where] = rows.to(cache.dtype)
    else:
        cache[where], scales[where] = quantized(rows)


def cached(cache: Tensor, scales: Tensor | None, where: Any, dtype: torch.dtype) -> Tensor:
    """What ``cache[where]`` stands for: itself if it has this dtype, else a copy in at least float32."""
    rows = cache[where]
    if rows.dtype == dtype:
        return rows
    rows = rows.to(torch.promote_types(dtype, torch.float32))
    return rows if scales is None else rows.mul_(scales[where][..., None])


def active_slots(cache_lengths: Tensor, active: Tensor | None) -> list[tuple[int, int]]:
    """``(slot, length)`` of each slot that takes part. On a GPU the host waits for the lengths."""
    lengths = enumerate(cache_lengths.tolist())
    return list(lengths) if active is None else list(itertools.compress(lengths, active.tolist()))
