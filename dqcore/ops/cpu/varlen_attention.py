"""Packed attention on the CPU: PyTorch's flash attention on views of each sequence, never padded.

Query heads that share a key head are a batch of their own, whose keys have stride 0: grouped heads copy no key. Dropout
needs every weight, so that it takes the reference, which holds the scores of one sequence at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.ops.sequences import Sequence, sequences, visible_keys
from dqcore.ops.varlen_attention import varlen_attention_backward_reference, varlen_attention_reference


class Mask(NamedTuple):
    """What one sequence hides, as PyTorch wants to be told."""

    causal: bool
    bias: Tensor | None  # (n, m), 0 or -inf
    blind: Tensor | None  # (n,) bool, queries that see nothing; their bias is 0


def varlen_attention_cpu(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """:func:`dqcore.ops.varlen_attention` for float16, bfloat16 and float32 on the CPU."""
    if setting.seed is not None:
        return varlen_attention_reference(q, k, v, *setting)
    out = torch.zeros(q.shape, dtype=q.dtype)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf)
    for each in sequences(*setting[:3]):
        mask = mask_of(each, setting.left, setting.right, q.dtype)
        inputs = grouped(q[each.rows], k[each.keys], v[each.keys])
        some, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *inputs, 0.0, mask.causal, attn_mask=mask.bias, scale=setting.scale
        )
        if mask.blind is not None:
            some, logs = some.masked_fill(mask.blind[:, None], 0), logs.masked_fill(mask.blind, -torch.inf)
        split_heads(out[each.rows], k).copy_(some)
        lse[:, each.rows].unflatten(0, (k.shape[1], -1)).transpose(0, 1).copy_(logs)
    return out, lse


def varlen_attention_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``q``, ``k`` and ``v``."""
    if setting.seed is not None:
        return varlen_attention_backward_reference(grad, q, k, v, out, lse, *setting)
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    for each in sequences(*setting[:3]):
        mask = mask_of(each, setting.left, setting.right, q.dtype)
        some, logs = split_heads(grad[each.rows], k), lse[:, each.rows].unflatten(0, (k.shape[1], -1)).transpose(0, 1)
        if mask.blind is not None:
            some, logs = some.masked_fill(mask.blind[:, None], 0), logs.masked_fill(mask.blind, torch.inf)
        inputs = (*grouped(q[each.rows], k[each.keys], v[each.keys]), split_heads(out[each.rows], k), logs)
        by_query, by_key, by_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            some, *inputs, 0.0, mask.causal, attn_mask=mask.bias, scale=setting.scale
        )
        split_heads(grad_q[each.rows], k).copy_(by_query)
        for total, parts in ((grad_k, by_key), (grad_v, by_value)):
            shared = parts[0] if len(parts) == 1 else parts.sum(0, dtype=torch.float32)
            total[each.keys].copy_(shared.transpose(0, 1))
    return grad_q, grad_k, grad_v


def mask_of(each: Sequence, left: int, right: int, dtype: torch.dtype) -> Mask:
    """What a window that is open where negative hides from the queries of one sequence."""
    queries, keys = each.rows.stop - each.rows.start, each.keys.stop - each.keys.start
    if left < 0 and right == 0 and queries in (1, keys) and each.prefix <= 1:
        return Mask(queries > 1, None, None)
    seen = visible_keys(queries, keys, each.prefix, left, right, torch.device("cpu"))
    if seen.all():
        return Mask(False, None, None)
    blind = ~seen.any(1)
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~(seen | blind[:, None]), -torch.inf)
    return Mask(False, bias, blind if blind.any() else None)


def split_heads(x: Tensor, k: Tensor) -> Tensor:
    """``(n, H, d)`` as ``(H / Hkv, Hkv, n, d)``, a view."""
    return x.unflatten(1, (k.shape[1], -1)).permute(2, 1, 0, 3)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(H / Hkv, Hkv, n, d)``, views."""
    query = split_heads(q, k)
    shape = (query.shape[0], k.shape[1], k.shape[0], k.shape[2])
    return query, k.transpose(0, 1).expand(shape), v.transpose(0, 1).expand(shape)
