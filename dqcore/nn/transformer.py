"""A stack of causal transformer blocks: packed for training, step by step over caches for sampling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dqcore import backends
from dqcore.nn.attention import CacheKind, CausalSelfAttention, KeysAndValues
from dqcore.ops.add_layer_norm import add_layer_norm
from dqcore.ops.dropout_mask import draw_seed
from dqcore.ops.linear_gelu import linear_gelu

__all__ = ["Cache", "Head", "Transformer", "TransformerBlock", "initialise"]

#: The residual sum so far and the branch that is still to be added to it.
Parts = tuple[Tensor, Tensor]
#: A residual sum, and what a normalization or a head makes of it.
SumAndResult = tuple[Tensor, Tensor]


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


class MLP(nn.Sequential):
    """Linear, exact GELU, linear; the first bias and the activation are one pass where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same."""
        first, _, last = self
        return last(linear_gelu(x, first.weight, first.bias))  # type: ignore[arg-type]


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; the MLP is four times as wide inside, with exact GELU.

    A block takes ``x`` in two parts, the sum so far and the branch that the block before adds to it, and returns two
    such parts: so that each sum is one pass with the dropout before it and the normalization after it.

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
        self.mlp = MLP(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = dropout

    def forward(self, x: Tensor, branch: Tensor | None, cu_seqlens: Tensor, seeds: Tensor | None = None) -> Parts:
        """Packed sequences ``(N, dim)``.

        Args:
            x: The sum so far.
            branch: What is added to it first, before its dropout; None for nothing.
            cu_seqlens: See :class:`Transformer`.
            seeds: Of three dropouts, ``(3, 2)``: the branch's, attention weights', attention's; by default drawn.

        Returns:
            The sum and the MLP's branch, before its dropout.
        """
        before, within, after = (None, None, None) if seeds is None else seeds
        x, normed = self._add(x, branch, self.norm1, before)
        x, normed = self._add(x, self.attention(normed, cu_seqlens, dropout_seed=within), self.norm2, after)
        return x, self.mlp(normed)

    def step(self, x: Tensor, branch: Tensor | None, cache: KeysAndValues, lengths: Tensor, active: Tensor) -> Parts:
        """:meth:`forward` for one token of each slot, ``(S, dim)``, over its cache; without dropout."""
        x, normed = _add_and_norm(self.norm1, x, branch)
        x, normed = _add_and_norm(self.norm2, x, self.attention.step(normed, cache, lengths, active=active))
        return x, self.mlp(normed)

    def _add(self, x: Tensor, branch: Tensor | None, norm: nn.LayerNorm, seed: Tensor | None) -> SumAndResult:
        """``x`` with what dropout leaves of the branch, and the same normalized."""
        return _add_and_norm(norm, x, branch, self.dropout if self.training else 0.0, seed)


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
        self.dropout = dropout
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, dropout) for _ in range(num_layers))
        #: Whether only the blocks' inputs are kept for the backward pass, which then computes the rest again.
        self.checkpointing = False

    def forward(self, x: Tensor, cu_seqlens: Tensor, head: Head | None = None) -> Any:
        """Run packed sequences through all blocks.

        Args:
            x: ``(N, dim)``.
            cu_seqlens: Sequence b is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``; ``(B + 1,)`` int32.
            head: Reads the result, so that its normalization is one pass with the last sum; None for none.

        Returns:
            ``(N, dim)``; the output of a token depends on that token and those before it in its sequence. With a head
            the same and its logits ``(N, num_classes)``.
        """
        branch, recompute = None, self.checkpointing and self.training and torch.is_grad_enabled()
        for block, seeds in zip(self.blocks, self._seeds(x), strict=True):
            if recompute:
                x = checkpoint(self._whole, block, x, cu_seqlens, seeds, use_reentrant=False)
            else:
                x, branch = block(x, branch, cu_seqlens, seeds)
        return self._end(x, branch, head, self._dropout_p)

    def new_cache(self, capacity: int, lengths: Tensor, active: Tensor, kind: CacheKind = "weights") -> Cache:
        """Empty caches for ``len(lengths)`` slots of ``capacity`` tokens, rounded up to a multiple of 32.

        Args:
            capacity: Tokens of the longest sequence.
            lengths: See :class:`Cache`.
            active: The same.
            kind: See :func:`dqcore.nn.attention.cache_dtype`.
        """
        slots, capacity = len(lengths), -(-capacity // 32) * 32
        layers = [block.attention.empty_cache(slots, capacity, kind) for block in self.blocks]  # type: ignore[operator, union-attr]
        return Cache(layers, lengths, active)

    def step(self, x: Tensor, cache: Cache, head: Head | None = None) -> Any:
        """The next token of each slot, ``(S, dim)``: the last rows of :meth:`forward` over all tokens so far.

        There is no dropout, in training mode either.

        Returns:
            ``(S, dim)``; with a head the same and its logits ``(S, num_classes)``. The caches are written to, and their
            lengths are not: see :class:`Cache`.
        """
        branch = None
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x, branch = block.step(x, branch, layer, cache.lengths, cache.active)  # type: ignore[operator]
        return self._end(x, branch, head, 0.0)

    @property
    def _dropout_p(self) -> float:
        return self.dropout if self.training else 0.0

    def _seeds(self, x: Tensor) -> Iterable[Tensor | None]:
        """Seeds of each block's dropouts, drawn together; None without dropout and on a CPU, whose own is faster."""
        if not (self.training and self.dropout) or backends.route(x.device) == "cpu":
            return [None] * len(self.blocks)
        return draw_seed(x.device, len(self.blocks), 3).unbind()

    def _whole(self, block: nn.Module, x: Tensor, cu_seqlens: Tensor, seeds: Tensor | None) -> Tensor:
        """A block with both parts of its result added up, so that a checkpoint keeps its input alone."""
        x, branch = block(x, None, cu_seqlens, seeds)
        return _sum(x, branch, self._dropout_p)

    def _end(self, x: Tensor, branch: Tensor | None, head: Head | None, dropout_p: float) -> Any:
        """The two parts of the last block's result together, and what the head makes of it."""
        return _sum(x, branch, dropout_p) if head is None else head.join(x, branch, dropout_p)


class Head(nn.Sequential):
    """LayerNorm, then a linear layer without bias to ``num_classes`` logits."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, num_classes, bias=False))

    def join(self, x: Tensor, branch: Tensor | None, dropout_p: float) -> SumAndResult:
        """The sum of both parts of a transformer's result, with dropout of the second; and its logits."""
        total, normed = _add_and_norm(self[0], x, branch, dropout_p)
        return total, self[1](normed)


def _sum(x: Tensor, branch: Tensor | None, dropout_p: float) -> Tensor:
    """``x`` with what dropout leaves of the branch."""
    return x if branch is None else x + functional.dropout(branch, dropout_p, dropout_p > 0)


def _add_and_norm(
    norm: Any, x: Tensor, branch: Tensor | None, dropout_p: float = 0.0, seed: Tensor | None = None
) -> SumAndResult:
    """``x`` with what dropout leaves of the branch, and the same normalized by this ``LayerNorm``."""
    if branch is None:
        return x, norm(x)
    return add_layer_norm(x, branch, norm.weight, norm.bias, eps=norm.eps, dropout_p=dropout_p, dropout_seed=seed)


def initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers and embeddings from N(0, 0.02^2), and set the biases of linear layers to 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
