"""Causal self-attention over packed sequences, and the same for new tokens of a cached sequence."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.ops.decode_attention import append_and_attend
from dqcore.ops.varlen_attention_packed import varlen_attention_packed

__all__ = ["CacheKind", "CausalSelfAttention", "KeysAndValues", "cache_dtype"]

#: How keys and values are kept: as the weights, in two bytes a number or in one; "auto" chooses between the first two.
CacheKind = Literal["auto", "weights", "bfloat16", "int8"]


class KeysAndValues(NamedTuple):
    """What a layer keeps of the tokens so far, for ``B`` slots of ``C`` tokens each.

    Attributes:
        keys: ``(B, C, H, d)``, in memory the tokens of one head side by side.
        values: As ``keys``.
        key_scales: By what each key of an int8 cache is multiplied, ``(B, C, H)`` float32; None for other dtypes.
        value_scales: As ``key_scales``.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


def cache_dtype(kind: CacheKind, weights: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys and values: "auto" is bfloat16 for float32 weights on a GPU, where reading them takes the time.

    Half precision is never changed to the other kind, which has no fewer bytes.
    """
    if kind == "int8":
        return torch.int8
    if kind == "bfloat16" and weights in (torch.float32, torch.float64):
        return torch.bfloat16
    narrow = kind == "auto" and weights == torch.float32 and device.type == "cuda"
    return torch.bfloat16 if narrow else weights


class CausalSelfAttention(nn.Module):
    """``proj(attention(qkv(x)))``: every token of a sequence sees itself and the tokens before it.

    Args:
        dim: Channels of input and output; ``num_heads`` divides it.
        num_heads: Heads, of ``dim / num_heads`` channels each, at most 256.
        dropout: Probability that an attention weight is dropped in training (the paper's 0.1); rounded to n/256.

    Parameters: ``qkv.weight (3 dim, dim)``, queries first, then keys, then values; ``proj.weight (dim, dim)``.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads: expected a divisor of dim={dim}, got {num_heads}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout: expected a probability in [0, 1), got {dropout}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        prefix_lengths: Tensor | None = None,
        dropout_seed: Tensor | None = None,
    ) -> Tensor:
        """Attention within each sequence of a packed batch.

        Args:
            x: ``(T, dim)``.
            cu_seqlens: Sequence b is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` of ``x``; ``(B + 1,)`` int32.
            prefix_lengths: ``(B,)`` int32, how many first tokens of each sequence are seen by all its tokens.
            dropout_seed: ``(2,)`` int64, of :func:`dqcore.ops.dropout_mask`; by default drawn anew.

        Returns:
            ``(T, dim)``.
        """
        dropout_p = self.dropout if self.training else 0.0
        out = varlen_attention_packed(
            self._heads(x), cu_seqlens, dropout_p=dropout_p, prefix_lengths=prefix_lengths, dropout_seed=dropout_seed
        )
        return self.proj(out.flatten(-2))

    def empty_cache(self, batch_size: int, capacity: int, kind: CacheKind = "weights") -> KeysAndValues:
        """An empty cache on the device of the weights.

        Args:
            batch_size: B, the number of slots.
            capacity: How many tokens each slot can hold.
            kind: See :func:`cache_dtype`.
        """
        weight = self.qkv.weight
        dtype, shape = cache_dtype(kind, weight.dtype, weight.device), (2, batch_size, self.num_heads, capacity)
        rows = weight.new_zeros(*shape, weight.shape[1] // self.num_heads, dtype=dtype).transpose(2, 3)
        scales = weight.new_zeros(shape, dtype=torch.float32).transpose(2, 3) if dtype == torch.int8 else (None, None)
        return KeysAndValues(*rows, *scales)

    def step(self, x: Tensor, cache: KeysAndValues, lengths: Tensor, *, active: Tensor | None = None) -> Tensor:
        """Append new tokens to the cache of their slot, and let them attend to all of it; without dropout.

        Args:
            x: ``(B, dim)``, or ``(B, n, dim)`` for n tokens of each slot.
            cache: From :meth:`empty_cache`; written to.
            lengths: How many tokens each slot holds, ``(B,)`` int32. They stay as they are, for the other layers.
            active: ``(B,)`` bool; a slot that is False takes no part: its tokens see nothing, its cache stays as it is.

        Returns:
            ``x``'s shape: what :meth:`forward` over the whole slot gives its last tokens, up to what the cache rounds.
        """
        new = x if x.dim() == 3 else x[:, None]
        q, k, v = self._heads(new).unbind(-3)
        k_cache, v_cache, *scales = cache
        out = append_and_attend(q, k, v, k_cache, v_cache, lengths, active, q.shape[-1] ** -0.5, "ieee", *scales)
        return self.proj(out.view(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values ``(..., 3, H, d)``, of one product."""
        return self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, -1)

    def extra_repr(self) -> str:
        """Heads and dropout, for ``print``."""
        return f"num_heads={self.num_heads}, dropout={self.dropout}"
