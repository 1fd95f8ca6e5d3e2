"""Decoding on the CPU: a batched product over all slots and heads at once, or PyTorch's flash attention slot by slot.

Caches in the queries' dtype are never copied; narrower ones are converted, layer by layer, as far as they are filled:
on a CPU they save memory, not time. The batched product needs caches in whose memory heads come before tokens, as in
``torch.empty(B, H, C, d).transpose(1, 2)``; others work too, but more slowly.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.ops.cpu.flash import Mask, flash_attention, grouped, mask_of, split_heads
from dqcore.ops.reference.decode_attention import active_slots, append, cached
from dqcore.ops.sequences import Sequence

#: The number of keys is rounded up to a multiple of this, and those too many are masked. So PyTorch adds a slot's terms
#: in the same order, however long the longest slot is.
BLOCK = 32
#: A product of fewer multiplications is computed by PyTorch in another way, which adds in another order.
SMALLEST_PRODUCT = 400


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
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """:func:`dqcore.ops.decode_attention` for float16, bfloat16 and float32 on the CPU."""
    if q.shape[1] == 1 and q.shape[2] == k_new.shape[2] and len(q) > 1:
        places = _places(cache_lengths, active, k_cache)
        taking = slice(None) if places.resting is None else places.slots
        append(k_cache, k_scales, (places.slots, places.ends), k_new[taking, 0])
        append(v_cache, v_scales, (places.slots, places.ends), v_new[taking, 0])
        filled = (slice(None), slice(places.bias.shape[2]))
        keys, values = cached(k_cache, k_scales, filled, q.dtype), cached(v_cache, v_scales, filled, q.dtype)
        return _all_slots(q.to(keys.dtype), keys.transpose(1, 2), values.transpose(1, 2), places, scale).to(q.dtype)
    out = torch.zeros(q.shape, dtype=q.dtype)
    new = q.shape[1]
    for slot, length in active_slots(cache_lengths, active):
        end = length + new
        append(k_cache, k_scales, (slot, slice(length, end)), k_new[slot])
        append(v_cache, v_scales, (slot, slice(length, end)), v_new[slot])
        seen = (slot, slice(end))
        keys, values = cached(k_cache, k_scales, seen, q.dtype), cached(v_cache, v_scales, seen, q.dtype)
        mask = mask_of(Sequence(slice(0, new), slice(0, end), 0), -1, 0, keys.dtype)
        some, _ = flash_attention(*grouped(q[slot].to(keys.dtype), keys, values), scale, mask)
        split_heads(out[slot], keys).copy_(some)
    return out


class _Places(NamedTuple):
    """Where one new token of each slot goes, and which keys it does not see.

    Attributes:
        slots: The slots that take part.
        ends: Their lengths: where their new keys are written.
        bias: ``(B * H, 1, L)``, -inf where a slot does not see a key. L, a multiple of BLOCK, is enough for the longest
            slot.
        resting: ``(B, 1, 1, 1)`` bool, the slots that take no part; None where all do.
    """

    slots: Tensor
    ends: Tensor
    bias: Tensor
    resting: Tensor | None


def _places(cache_lengths: Tensor, active: Tensor | None, cache: Tensor) -> _Places:
    takes_part = None if active is None else tuple(active.tolist())
    return _known_places(tuple(cache_lengths.tolist()), takes_part, cache.shape[1], cache.shape[2])


@functools.lru_cache(maxsize=2)  # the layers of a model have the same lengths
def _known_places(lengths: tuple[int, ...], active: tuple[bool, ...] | None, capacity: int, heads: int) -> _Places:
    takes_part = torch.ones(len(lengths), dtype=torch.bool) if active is None else torch.tensor(active)
    ends = torch.tensor(lengths) * takes_part
    longest = min(capacity, -(-(int(ends.max()) + 1) // BLOCK) * BLOCK)
    slots = takes_part.nonzero()[:, 0]
    resting = None if len(slots) == len(lengths) else ~takes_part[:, None, None, None]
    bias = torch.zeros(len(lengths), longest, dtype=torch.float32)
    bias = bias.masked_fill_(torch.arange(longest) > ends[:, None], -torch.inf)
    return _Places(slots, ends[slots], bias.repeat_interleave(heads, 0)[:, None], resting)


def _all_slots(q: Tensor, keys: Tensor, values: Tensor, places: _Places, scale: float) -> Tensor:
    """One new token of each slot to ``(B, H, L, d)``: one call for all slots, with a mask that hides what lies behind.

    A masked key has weight 0, but 0 times a NaN that lies there is NaN. If there is one it works on a copy with zeros
    in the hidden places, in the same order: no bit of a slot changes for what lies there, or because another has a NaN.
    """
    bias = places.bias
    batched = _one_stride(keys) and _one_stride(values) and BLOCK * q.shape[3] >= SMALLEST_PRODUCT
    attend = _attend_batched if batched and q.dtype == torch.float32 else _attend_flash

    def result(keys: Tensor, values: Tensor) -> Tensor:
        out = attend(q, keys, values, bias, scale)
        return out if places.resting is None else out.masked_fill_(places.resting, 0.0)

    out = result(keys, values)
    if math.isnan(out.sum()):
        hidden = bias.view(len(q), -1, bias.shape[2], 1)[:, :1] < 0
        out = result(keys.masked_fill(hidden, 0), values.masked_fill(hidden, 0))
    return out


def _attend_batched(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """``q (B, 1, H, d)`` to the same shape; keys and values ``(B, H, L, d)`` have one stride over slots and heads."""
    slots, heads, _, dim = keys.shape
    rows = q.reshape(slots * heads, 1, dim)
    weights = torch.baddbmm(bias, rows, keys.flatten(0, 1).mT, alpha=scale).softmax(-1)
    return torch.bmm(weights, values.flatten(0, 1)).view(q.shape)


def _attend_flash(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """As :func:`_attend_batched`, for keys and values of any strides."""
    bias = bias.view(len(q), -1, 1, bias.shape[2])[:, :1].to(q.dtype)
    out, _ = flash_attention(q.transpose(1, 2), keys, values, scale, Mask(False, bias, None))
    return out.transpose(1, 2).contiguous()


def _one_stride(cache: Tensor) -> bool:
    """Whether slots and heads can be flattened into one dimension without a copy."""
    return cache.stride(0) == cache.shape[1] * cache.stride(1)
