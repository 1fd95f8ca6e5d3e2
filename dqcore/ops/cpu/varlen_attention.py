"""Packed attention on the CPU, one sequence after another, never padded.

Without dropout it is PyTorch's flash attention on views of a sequence, with it :mod:`dropped_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.ops.cpu.dropped_attention import DroppedAttention
from dqcore.ops.cpu.flash import flash_attention, flash_attention_backward, grouped, mask_of, split_heads
from dqcore.ops.sequences import sequences

__all__ = ["varlen_attention_backward_cpu", "varlen_attention_cpu"]


def varlen_attention_cpu(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """:func:`dqcore.ops.varlen_attention` for float16, bfloat16 and float32 on the CPU: output and lse."""
    out = torch.zeros(q.shape, dtype=q.dtype)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32)
    for each in sequences(setting.cu_seqlens_q, setting.cu_seqlens_k, setting.prefix_lengths):
        if setting.seed is not None:
            dropped = DroppedAttention(each, q[each.rows], k[each.keys], v[each.keys], setting)
            dropped.forward(out[each.rows], lse[:, each.rows])
            continue
        mask = mask_of(each, setting.left, setting.right, q.dtype)
        some, logs = flash_attention(*grouped(q[each.rows], k[each.keys], v[each.keys]), setting.scale, mask)
        if mask.blind is not None:
            some, logs = some.masked_fill(mask.blind[:, None], 0), logs.masked_fill(mask.blind, -torch.inf)
        split_heads(out[each.rows], k).copy_(some)
        lse[:, each.rows].unflatten(0, (k.shape[1], -1)).transpose(0, 1).copy_(logs)
    return out, lse


def varlen_attention_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``q``, ``k`` and ``v``."""
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    for each in sequences(setting.cu_seqlens_q, setting.cu_seqlens_k, setting.prefix_lengths):
        if setting.seed is not None:
            dropped = DroppedAttention(each, q[each.rows], k[each.keys], v[each.keys], setting)
            of_keys = dropped.backward(grad[each.rows], out[each.rows], lse[:, each.rows], grad_q[each.rows])
            for total, own in zip((grad_k, grad_v), of_keys, strict=True):
                total[each.keys].copy_(own)
            continue
        mask = mask_of(each, setting.left, setting.right, q.dtype)
        some, logs = split_heads(grad[each.rows], k), lse[:, each.rows].unflatten(0, (k.shape[1], -1)).transpose(0, 1)
        if mask.blind is not None:
            some, logs = some.masked_fill(mask.blind[:, None], 0), logs.masked_fill(mask.blind, torch.inf)
        inputs = (*grouped(q[each.rows], k[each.keys], v[each.keys]), split_heads(out[each.rows], k), logs)
        by_query, by_key, by_value = flash_attention_backward(some, *inputs, setting.scale, mask)
        split_heads(grad_q[each.rows], k).copy_(by_query)
        for total, parts in ((grad_k, by_key), (grad_v, by_value)):
            shared = parts[0] if len(parts) == 1 else parts.sum(0, dtype=torch.float32)
            total[each.keys].copy_(shared.transpose(0, 1))
    return grad_q, grad_k, grad_v
