"""Packed attention, backward to keys and values: one program takes BLOCK_N keys past the queries that see them.

Those of all query heads that share the key head, in their order, so that ``dk = sum_i p (dp - delta) q_i`` and ``dv =
sum_i p do_i`` are the same in every run; the weights are computed again, in tiles of ``(keys, queries)``. Dropout's
1 / (share kept) is left to the end of the sums. Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, on_device
from dqcore.kernels.dropout_mask import keep_tile_transposed
from dqcore.kernels.sequences import (
    block_list,
    extent,
    listed,
    load_base,
    load_rows,
    prefix_of,
    products,
    query_tiles,
    store_rows,
    visible,
)
from dqcore.kernels.setting import Setting
from dqcore.kernels.varlen_attention import LENGTHS, LOG2E, VARYING, candidate, flags, tile

CANDIDATES = [
    *(candidate(m, n, 256, warps, stages) for m, n, warps, stages in (
        (128, 64, 8, 1), (64, 128, 8, 2), (64, 128, 8, 1), (64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 8, 2),
        (64, 64, 8, 1), (32, 128, 8, 2), (32, 128, 8, 1), (16, 128, 8, 1), (32, 64, 4, 2), (32, 64, 4, 1),
    )),
    *(candidate(m, n, chunk, warps, 1) for m, n, chunk, warps in (
        (16, 32, 32, 8), (16, 64, 16, 8), (16, 64, 32, 8), (16, 64, 16, 16), (32, 64, 16, 16),
        (32, 64, 32, 8), (32, 64, 64, 8),
    )),
]  # fmt: skip


@triton.jit
def _dkv_tile(
    totals, key, value, k, v, q, grad, lse, delta, stride_k, stride_v, stride_q, stride_g, columns, first, row, m,
    queries, keys, window, scale, seed, head,
    MASKED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dk`` and ``dv`` after one more tile of queries; scores are ``(keys, queries)``."""
    grad_k, grad_v = totals
    rows = m * BLOCK_M + tl.arange(0, BLOCK_M)
    query = load_rows(q, stride_q, m * BLOCK_M, queries, BLOCK_M, D, BLOCK_D, UPCAST)
    score = products(
        k, stride_k, first, keys, key, q, stride_q, m * BLOCK_M, queries, query,
        BLOCK_N, BLOCK_M, PRECISION, D, BLOCK_D, CHUNK, UPCAST,
    )  # fmt: skip
    if MASKED:
        score = tl.where(visible(rows[None, :], columns[:, None], window, LEFT, RIGHT), score, float("-inf"))
    weight = tl.exp2(score * scale - load_base(lse, rows, queries)[None, :])
    grad_out = load_rows(grad, stride_g, m * BLOCK_M, queries, BLOCK_M, D, BLOCK_D, UPCAST)
    grad_weight = products(
        v, stride_v, first, keys, value, grad, stride_g, m * BLOCK_M, queries, grad_out,
        BLOCK_N, BLOCK_M, PRECISION, D, BLOCK_D, CHUNK, UPCAST,
    )  # fmt: skip
    kept = weight
    if KEEP < 256:
        survives = keep_tile_transposed(seed, head, row + rows, first, KEEP, BLOCK_M, BLOCK_N)
        kept = tl.where(survives, weight, 0.0)
        grad_weight = tl.where(survives, grad_weight, 0.0)
    grad_v = tl.dot(kept.to(query.dtype), grad_out, grad_v, input_precision=PRECISION)
    pull = tl.load(delta + rows, mask=rows < queries, other=0.0)
    grad_score = weight * (grad_weight - pull[None, :])
    return tl.dot(grad_score.to(query.dtype), query, grad_k, input_precision=PRECISION), grad_v


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=LENGTHS)
def _varlen_attention_dkv_kernel(
    q, k, v, grad, lse, delta, grad_k, grad_v, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, blocks,
    B, T, S, left, right, scale, softmax_scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_gt, stride_gh, stride_dt, stride_dh,
    GROUP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    inside, sequence, first = listed(blocks, tl.program_id(0), BLOCK_N)
    if not inside:
        return
    key_head = tl.program_id(1).to(tl.int64)
    row, queries = extent(cu_seqlens_q, sequence, B, 0)
    column, keys = extent(cu_seqlens_k, sequence, B, S)
    prefix = prefix_of(prefix_lengths, sequence, B)
    columns = first + tl.arange(0, BLOCK_N)
    k += column * stride_kt + key_head * stride_kh
    v += column * stride_vt + key_head * stride_vh
    key = load_rows(k, stride_kt, first, keys, BLOCK_N, D, BLOCK_D, UPCAST)
    value = load_rows(v, stride_vt, first, keys, BLOCK_N, D, BLOCK_D, UPCAST)
    totals = (tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32))
    window = (keys - queries, keys, prefix, left, right)
    begin, whole, end = query_tiles(first, queries, window, LEFT, RIGHT, BLOCK_M, BLOCK_N)
    for member in range(0, GROUP):
        head = key_head * GROUP + member
        query = q + row * stride_qt + head * stride_qh
        grad_out = grad + row * stride_gt + head * stride_gh
        sums = head * T + row
        for m in range(bound(begin, INTERPRETED), bound(whole, INTERPRETED)):
            totals = _dkv_tile(
                totals, key, value, k, v, query, grad_out, lse + sums, delta + sums, stride_kt, stride_vt,
                stride_qt, stride_gt, columns, first, row, m, queries, keys, window, scale, seed, head,
                True, LEFT, RIGHT, KEEP, PRECISION, D, BLOCK_D, CHUNK, UPCAST, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        if not LEFT:
            for m in range(bound(whole, INTERPRETED), bound(end, INTERPRETED)):
                totals = _dkv_tile(
                    totals, key, value, k, v, query, grad_out, lse + sums, delta + sums, stride_kt, stride_vt,
                    stride_qt, stride_gt, columns, first, row, m, queries, keys, window, scale, seed, head,
                    False, LEFT, RIGHT, KEEP, PRECISION, D, BLOCK_D, CHUNK, UPCAST, BLOCK_M, BLOCK_N,
                )  # fmt: skip
    by_key, by_value = totals
    by_key *= softmax_scale * (256.0 / KEEP)
    by_value *= 256.0 / KEEP
    start = column * stride_dt + key_head * stride_dh
    store_rows(grad_k + start, stride_dt, first, keys, by_key, BLOCK_N, D, BLOCK_D)
    store_rows(grad_v + start, stride_dt, first, keys, by_value, BLOCK_N, D, BLOCK_D)


def varlen_attention_dkv(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    """Gradients of ``k`` and ``v (S, Hkv, d)``."""
    grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    if len(k) == 0:
        return grad_k, grad_v
    with on_device(q):
        launch = tile("varlen_attention_dkv", q, setting)
        blocks, size = block_list(setting.cu_seqlens_k, len(k), launch["BLOCK_N"], last_first=False)
        _varlen_attention_dkv_kernel[(size, k.shape[1])](
            *(q, k, v, grad, lse, delta, grad_k, grad_v, *setting.tensors, blocks),
            *(setting.batch, len(q), len(k), setting.left, setting.right, setting.scale * LOG2E, setting.scale),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            *(*grad.stride()[:2], *grad_k.stride()[:2]),
            **flags(q, k, setting),
            **launch,
        )
    return grad_k, grad_v
