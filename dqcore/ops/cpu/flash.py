"""PyTorch's flash attention for the CPU, and one packed sequence in the shape that it takes.

``torch.nn.functional.scaled_dot_product_attention`` does not return the log of the sum of exponentials, which the
backward pass of packed attention needs, and it may choose another kernel, with other rounding, by the shapes it gets.
So the private ops behind it are called: here, and nowhere else. Seen to work with torch 2.14.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.ops.sequences import Sequence, size_of, visible_keys

__all__ = ["Mask", "flash_attention", "flash_attention_backward", "grouped", "mask_of", "split_heads"]

Grads = tuple[Tensor, Tensor, Tensor]


class Mask(NamedTuple):
    """What is hidden from the queries of one sequence, in the form that PyTorch takes."""

    causal: bool
    bias: Tensor | None  # (n, m) or what extends to that, 0 or -inf
    blind: Tensor | None  # (n,) bool, the queries that see nothing; their bias is 0


def flash_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    """Attention of ``q (B, H, n, d)`` to ``k`` and ``v (B, H, m, d)``; what ``mask.blind`` says is left to the caller.

    Returns:
        The output ``(B, H, n, d)`` in ``q``'s dtype, and the log of the sum of exponentials ``(B, H, n)`` float32.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, mask.causal, attn_mask=mask.bias, scale=scale
    )
    return out, lse


def flash_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, mask: Mask
) -> Grads:
    """Gradients of ``q``, ``k`` and ``v`` of :func:`flash_attention`."""
    grads: Grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, mask.causal, attn_mask=mask.bias, scale=scale
    )
    return grads


def mask_of(each: Sequence, left: int, right: int, dtype: torch.dtype) -> Mask:
    """What a window hides from the queries of one sequence; a negative side of the window is open."""
    queries, keys = size_of(each.rows), size_of(each.keys)
    if left < 0 and right == 0 and queries in (1, keys) and each.prefix <= 1:
        return Mask(queries > 1, None, None)
    seen = visible_keys(queries, keys, each.prefix, left, right, torch.device("cpu"))
    if seen.all():
        return Mask(False, None, None)
    blind = ~seen.any(1)
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~(seen | blind[:, None]), -torch.inf)
    return Mask(False, bias, blind if blind.any() else None)


def split_heads(x: Tensor, k: Tensor) -> Tensor:
    """``(n, H, d)`` as ``(H / Hkv, Hkv, n, d)``, a view, where ``k`` has Hkv heads."""
    return x.unflatten(1, (k.shape[1], -1)).permute(2, 1, 0, 3)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Grads:
    """Queries, keys and values of one sequence as ``(H / Hkv, Hkv, n, d)``, views.

    The query heads that share a key head lie along the first dimension, along which keys and values have stride 0: no
    key is copied.
    """
    query = split_heads(q, k)
    shape = (query.shape[0], k.shape[1], k.shape[0], k.shape[2])
    return query, k.transpose(0, 1).expand(shape), v.transpose(0, 1).expand(shape)
