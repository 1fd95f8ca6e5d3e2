"""A stack of causal transformer blocks: packed for training, step by step over caches for sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dqcore.nn.attention import CacheKind, CausalSelfAttention, KeysAndValues

__all__ = ["Cache", "Head", "Transformer", "TransformerBlock", "initialise"]


class Cache(NamedTuple):
    """Keys and values of all tokens so far, for each of ``S`` slots that are sampled at once.

    Attributes:
        layers: Keys and values of each layer.
        lengths: Number of tokens of each slot so far, ``(S,)`` int32; the caller adds 1 after each step.
        active: Slots that take part, ``(S,)`` bool.
    """

    layers: list[KeysAndValues]
    lengths: Tensor
    active: Tensor


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; the MLP is four times as wide inside, with exact GELU.

    Args:
        dim: Channels.
        num_heads: Heads; must divide ``dim``.
        dropout: Probability of dropping an attention weight, and a value that either branch adds.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Packed sequences ``(N, dim)``; see :class:`Transformer`."""
        x = x + self.dropout(self.attention(self.norm1(x), cu_seqlens))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def step(self, x: Tensor, cache: KeysAndValues, lengths: Tensor, active: Tensor) -> Tensor:
        """One token of each slot, ``(S, dim)``; without dropout."""
        x = self.attention.step(self.norm1(x), cache, lengths, active=active).add_(x)
        return self.mlp(self.norm2(x)).add_(x)


class Transformer(nn.Module):
    """Blocks one after the other, without a final normalization.

    Args:
        dim: Channels.
        num_heads: Heads of each block.
        num_layers: Blocks.
        dropout: See :class:`TransformerBlock`.
    """

    def __init__(self, dim: int, num_heads: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, dropout) for _ in range(num_layers))
        #: Whether only the blocks' inputs are kept for the backward pass, which then computes the rest again.
        self.checkpointing = False

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Run packed sequences through all blocks.

        Args:
            x: ``(N, dim)``.
            cu_seqlens: Sequence b is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``; ``(B + 1,)`` int32.

        Returns:
            ``(N, dim)``; the output of a token depends on that token and those before it in its sequence.
        """
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, cu_seqlens, use_reentrant=False)
            else:
                x = block(x, cu_seqlens)
        return x

    def new_cache(self, capacity: int, lengths: Tensor, active: Tensor, kind: CacheKind = "weights") -> Cache:
        """Empty caches for ``len(lengths)`` slots of ``capacity`` tokens; :func:`dqcore.nn.attention.cache_dtype`."""
        slots, capacity = len(lengths), -(-capacity // 32) * 32
        layers = [block.attention.empty_cache(slots, capacity, kind) for block in self.blocks]  # type: ignore[operator, union-attr]
        return Cache(layers, lengths, active)

    def step(self, x: Tensor, cache: Cache) -> Tensor:
        """The next token of each slot, ``(S, dim)``: the last rows of :meth:`forward` over all tokens so far."""
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block.step(x, layer, cache.lengths, cache.active)  # type: ignore[operator]
        return x


class Head(nn.Sequential):
    """LayerNorm, then a linear layer without bias to ``num_classes`` logits."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, num_classes, bias=False))


def initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers and embeddings from N(0, 0.02^2), and set the biases of linear layers to 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
