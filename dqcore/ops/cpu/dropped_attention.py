"""Attention of one packed sequence with dropout on the CPU, where PyTorch's flash attention has none.

A block of queries at a time meets the keys that it may see. The block's scores become its weights in place, so memory
grows with one block's, not with the square of the length. The backward pass computes weights and survivors again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.ops.cpu.dropout_mask import COLUMNS, drop_weights
from dqcore.ops.sequences import Sequence, seen_from, size_of

__all__ = ["DroppedAttention"]

ROWS = 128  # queries of a block
LOWEST, SMALLEST = torch.finfo(torch.float32).min, torch.finfo(torch.float32).tiny


class _Block(NamedTuple):
    """Some queries of a sequence, and the keys between the first and the last that any of them sees."""

    rows: slice
    keys: slice


class DroppedAttention:
    """The attention of one sequence; heads that share a key head lie side by side, as rows of one product.

    Args:
        each: Where the sequence lies in its batch.
        q: Its queries ``(n, H, d)``.
        k: Its keys ``(m, Hkv, d)``.
        v: Its values.
        setting: Of the whole batch, with a seed.
    """

    def __init__(self, each: Sequence, q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> None:
        self.each, self.setting = each, setting
        self.queries, self.keys, self.values = q, k.float().transpose(0, 1), v.float().transpose(0, 1)

    def forward(self, out: Tensor, lse: Tensor) -> None:
        """Write output ``(n, H, d)`` and log of the sum of exponentials ``(H, n)``, but for queries without a key."""
        for block in self._blocks():
            weights = self._scores(block)
            highest = weights.amax(2, keepdim=True).clamp_min_(LOWEST)  # finite for a query that sees nothing
            total = weights.sub_(highest).exp_().sum(2, keepdim=True)
            self._drop(weights, block)
            mixed = torch.bmm(weights, self.values[:, block.keys])
            mixed *= 256 / self.setting.keep / total.clamp_min(SMALLEST)
            self._by_key_head(out[block.rows]).copy_(self._ungrouped(mixed))
            lse[:, block.rows] = (highest + total.log()).view(lse.shape[0], -1)

    def backward(self, grad: Tensor, out: Tensor, lse: Tensor, grad_q: Tensor) -> tuple[Tensor, Tensor]:
        """Write the gradient of the queries ``(n, H, d)``; return those of keys and values ``(m, Hkv, d)`` float32."""
        grad_k, grad_v = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        share = 256 / self.setting.keep
        for block in self._blocks():
            rows, keys = block
            query, given = self._grouped(self.queries[rows]), self._grouped(grad[rows]).mul(share)
            weights = self._scores(block)
            weights.sub_(lse[:, rows].clamp_min(LOWEST).reshape(len(weights), -1, 1)).exp_()
            kept = weights.clone()
            self._drop(kept, block)
            grad_v[:, keys].baddbmm_(kept.transpose(1, 2), given)
            delta = (given * self._grouped(out[rows])).sum(2, keepdim=True).div_(share)
            by_score = torch.bmm(given, self.values[:, keys].transpose(1, 2))
            by_score.mul_(kept).addcmul_(weights, delta, value=-1)  # times the scale, which its sums get
            grad_k[:, keys].baddbmm_(by_score.transpose(1, 2), query, alpha=self.setting.scale)
            by_query = torch.bmm(by_score, self.keys[:, keys]).mul_(self.setting.scale)
            self._by_key_head(grad_q[rows]).copy_(self._ungrouped(by_query))
        return grad_k.transpose(0, 1), grad_v.transpose(0, 1)

    def _blocks(self) -> Iterator[_Block]:
        n, m, (_, _, prefix) = len(self.queries), self.keys.shape[1], self.each
        left, right = self.setting.left, self.setting.right
        for start in range(0, n, ROWS):
            stop = min(n, start + ROWS)
            first, last = start + m - n, stop - 1 + m - n  # the keys at which the first and the last query stand
            end = m if right < 0 else min(m, max(prefix, last + right + 1))
            begin = 0 if left < 0 or prefix > 0 else max(0, (first - left) // COLUMNS * COLUMNS)
            if begin < end:
                yield _Block(slice(start, stop), slice(begin, end))

    def _scores(self, block: _Block) -> Tensor:
        """``(Hkv, H / Hkv * rows, keys)``; -inf where a key is not seen."""
        query = self._grouped(self.queries[block.rows]) * self.setting.scale
        scores = torch.bmm(query, self.keys[:, block.keys].transpose(1, 2))
        rows, keys = (torch.arange(part.start, part.stop, device=scores.device) for part in block)
        places = rows + (self.keys.shape[1] - len(self.queries))
        seen = seen_from(places, keys, self.each.prefix, self.setting.left, self.setting.right)
        partly = (~seen.all(0)).nonzero()
        if len(partly) > 0:
            some = slice(int(partly[0]), int(partly[-1]) + 1)
            scores.view(len(scores), -1, *seen.shape)[..., some].masked_fill_(~seen[:, some], -torch.inf)
        return scores

    def _drop(self, weights: Tensor, block: _Block) -> None:
        seed = self.setting.seed
        assert seed is not None
        own = weights.view(-1, size_of(block.rows), weights.shape[2])
        drop_weights(own, seed, self.each.rows.start + block.rows.start, block.keys.start, self.setting.keep)

    def _by_key_head(self, x: Tensor) -> Tensor:
        """``(rows, H, d)`` as ``(Hkv, H / Hkv, rows, d)``, a view."""
        return x.unflatten(1, (len(self.keys), -1)).permute(1, 2, 0, 3)

    def _grouped(self, x: Tensor) -> Tensor:
        """``(rows, H, d)`` as ``(Hkv, H / Hkv * rows, d)`` float32."""
        return self._by_key_head(x.float()).flatten(1, 2)

    def _ungrouped(self, x: Tensor) -> Tensor:
        """``(Hkv, H / Hkv * rows, d)`` as ``(Hkv, H / Hkv, rows, d)``, a view."""
        return x.unflatten(1, (self.queries.shape[1] // len(self.keys), -1))
