"""The specification of ``varlen_attention``, forward and backward: one sequence at a time, all its scores at once."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.ops.reference.dropout_mask import dropout_mask_reference
from dqcore.ops.sequences import sequences, size_of, visible_keys

__all__ = ["varlen_attention_backward_reference", "varlen_attention_reference"]


def varlen_attention_reference(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Output ``(T, H, d)`` in ``q``'s dtype, and log of the sum of exponentials ``(H, T)`` in float32 or float64."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=wide, device=q.device)
    for rows, keys, prefix in sequences(setting.cu_seqlens_q, setting.cu_seqlens_k, setting.prefix_lengths):
        scores = _scores(q[rows], k[keys], prefix, setting)
        lse[:, rows] = scores.logsumexp(2)
        weights = _weights(scores, lse[:, rows])
        if setting.seed is not None:
            weights = weights * _survivors(setting.seed, q, rows, keys, setting.keep)
        out[rows] = torch.einsum("hij,jhd->ihd", weights, _per_head(v[keys], q)).to(q.dtype)
    return out, lse


def varlen_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``q``, ``k`` and ``v``: ``ds = p (dp - sum_d(do o))``, where p are the weights before dropout."""
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for rows, keys, prefix in sequences(setting.cu_seqlens_q, setting.cu_seqlens_k, setting.prefix_lengths):
        weights = _weights(_scores(q[rows], k[keys], prefix, setting), lse[:, rows])
        seed, keep = setting.seed, setting.keep
        survivors = weights.new_ones(()) if seed is None else _survivors(seed, q, rows, keys, keep)
        grad_out = grad[rows].to(lse.dtype)
        delta = (grad_out * out[rows]).sum(2).T[:, :, None]
        grad_weights = torch.einsum("ihd,jhd->hij", grad_out, _per_head(v[keys], q)) * survivors
        grad_scores = weights * (grad_weights - delta) * setting.scale
        grad_q[rows] = torch.einsum("hij,jhd->ihd", grad_scores, _per_head(k[keys], q)).to(q.dtype)
        by_key = torch.einsum("hij,ihd->jhd", grad_scores, q[rows].to(lse.dtype))
        by_value = torch.einsum("hij,ihd->jhd", weights * survivors, grad_out)
        for total, per_query_head in ((grad_k, by_key), (grad_v, by_value)):
            total[keys] = per_query_head.unflatten(1, (k.shape[1], -1)).sum(2).to(total.dtype)
    return grad_q, grad_k, grad_v


def _per_head(x: Tensor, q: Tensor) -> Tensor:
    """Repeat key heads, ``(n, Hkv, d)`` to ``(n, H, d)``, in the dtype of the scores."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).repeat_interleave(q.shape[1] // x.shape[1], 1)


def _scores(q: Tensor, k: Tensor, prefix: int, setting: Setting) -> Tensor:
    """Scores of one sequence, ``(H, n, m)``; -inf where a key is not seen."""
    seen = visible_keys(q.shape[0], k.shape[0], prefix, setting.left, setting.right, q.device)
    product = torch.einsum("ihd,jhd->hij", _per_head(q, q), _per_head(k, q))
    return (product * setting.scale).masked_fill(~seen, -torch.inf)


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """``exp(scores - lse)``; 0 for a query that sees nothing, whose lse is -inf."""
    return (scores - lse.masked_fill(lse == -torch.inf, torch.inf)[:, :, None]).exp()


def _survivors(seed: Tensor, q: Tensor, rows: slice, keys: slice, keep: int) -> Tensor:
    """What dropout multiplies weights by, ``(H, n, m)``: 1 / (share kept) where a weight survives, else 0."""
    row = torch.arange(rows.start, rows.stop, device=q.device)
    mask = dropout_mask_reference(seed, q.shape[1], row, size_of(keys), keep)
    return mask.to(torch.promote_types(q.dtype, torch.float32)) * (256 / keep)
