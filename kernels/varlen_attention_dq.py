"""Packed attention, backward to the queries: one program takes BLOCK_M queries past the keys that they see.

``delta = sum_d(do o)``, which :mod:`dqcore.kernels.varlen_attention_dkv` needs too, and ``dq = sum_j p (dp - delta)
k_j``, with the weights computed again. Dropout's 1 / (share kept) is left to the end of the sum, so that delta is kept
times the share. Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, on_device
from dqcore.kernels.dropout_mask import keep_tile
from dqcore.kernels.sequences import (
    block_list,
    extent,
    key_tiles,
    listed,
    load_base,
    load_rows,
    prefix_of,
    products,
    store_rows,
    visible,
)
from dqcore.kernels.setting import Setting
from dqcore.kernels.varlen_attention import LENGTHS, LOG2E, VARYING, candidate, flags, tile

CANDIDATES = [
    *(candidate(m, n, 256, warps, stages) for m, n, warps, stages in (
        (128, 64, 8, 2), (128, 64, 8, 1), (128, 32, 8, 2), (128, 32, 8, 1), (64, 128, 8, 2), (64, 64, 4, 2),
        (64, 64, 4, 1), (64, 64, 8, 1), (64, 32, 4, 2), (64, 32, 4, 1), (64, 32, 8, 1),
    )),
    *(candidate(m, n, chunk, warps, 1) for m, n, chunk, warps in (
        (32, 32, 16, 4), (32, 32, 16, 8), (32, 32, 32, 8), (32, 64, 16, 4), (32, 64, 16, 8),
        (64, 32, 16, 4), (64, 32, 16, 8), (64, 32, 32, 8),
    )),
]  # fmt: skip


@triton.jit
def _dq_tile(
    total, query, grad_out, base, delta, q, grad, k, v, stride_q, stride_g, stride_k, stride_v,
    first, rows, row, n, queries, keys, window, scale, seed, head,
    MASKED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dq`` after one more tile of keys."""
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    key = load_rows(k, stride_k, n * BLOCK_N, keys, BLOCK_N, D, BLOCK_D, UPCAST)
    score = products(
        q, stride_q, first, queries, query, k, stride_k, n * BLOCK_N, keys, key,
        BLOCK_M, BLOCK_N, PRECISION, D, BLOCK_D, CHUNK, UPCAST,
    )  # fmt: skip
    if MASKED:
        score = tl.where(visible(rows[:, None], columns[None, :], window, LEFT, RIGHT), score, float("-inf"))
    weight = tl.exp2(score * scale - base[:, None])
    value = load_rows(v, stride_v, n * BLOCK_N, keys, BLOCK_N, D, BLOCK_D, UPCAST)
    grad_weight = products(
        grad, stride_g, first, queries, grad_out, v, stride_v, n * BLOCK_N, keys, value,
        BLOCK_M, BLOCK_N, PRECISION, D, BLOCK_D, CHUNK, UPCAST,
    )  # fmt: skip
    if KEEP < 256:
        grad_weight = tl.where(keep_tile(seed, head, row + rows, n * BLOCK_N, KEEP, BLOCK_M, BLOCK_N), grad_weight, 0.0)
    grad_score = weight * (grad_weight - delta[:, None])
    return tl.dot(grad_score.to(key.dtype), key, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=LENGTHS)
def _varlen_attention_dq_kernel(
    q, k, v, out, grad, lse, delta, grad_q, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, blocks,
    B, T, left, right, scale, softmax_scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh, stride_gt, stride_gh,
    stride_dt, stride_dh,
    GROUP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    inside, sequence, first = listed(blocks, tl.program_id(0), BLOCK_M)
    if not inside:
        return
    head = tl.program_id(1).to(tl.int64)
    row, queries = extent(cu_seqlens_q, sequence, B, T)
    column, keys = extent(cu_seqlens_k, sequence, B, 0)
    prefix = prefix_of(prefix_lengths, sequence, B)
    k += column * stride_kt + head // GROUP * stride_kh
    v += column * stride_vt + head // GROUP * stride_vh
    q += row * stride_qt + head * stride_qh
    grad += row * stride_gt + head * stride_gh

    rows = first + tl.arange(0, BLOCK_M)
    query = load_rows(q, stride_qt, first, queries, BLOCK_M, D, BLOCK_D, UPCAST)
    grad_out = load_rows(grad, stride_gt, first, queries, BLOCK_M, D, BLOCK_D, UPCAST)
    result = load_rows(out + row * stride_ot + head * stride_oh, stride_ot, first, queries, BLOCK_M, D, BLOCK_D, UPCAST)
    pull = tl.sum(grad_out.to(tl.float32) * result.to(tl.float32), 1) * (KEEP / 256.0)
    tl.store(delta + head * T + row + rows, pull, mask=rows < queries)
    base = load_base(lse + head * T + row, rows, queries)

    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    window = (keys - queries, keys, prefix, left, right)
    whole, end, shown, gap = key_tiles(first, window, LEFT, RIGHT, BLOCK_M, BLOCK_N)
    if not LEFT:
        for n in range(0, bound(whole, INTERPRETED)):
            total = _dq_tile(
                total, query, grad_out, base, pull, q, grad, k, v, stride_qt, stride_gt, stride_kt, stride_vt, first,
                rows, row, n, queries, keys, window, scale, seed, head,
                False, LEFT, RIGHT, KEEP, PRECISION, D, BLOCK_D, CHUNK, UPCAST, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    for n in range(bound(whole, INTERPRETED), bound(end, INTERPRETED)):
        place = n + tl.where(n >= shown, gap, 0) if LEFT else n
        total = _dq_tile(
            total, query, grad_out, base, pull, q, grad, k, v, stride_qt, stride_gt, stride_kt, stride_vt, first,
            rows, row, place, queries, keys, window, scale, seed, head,
            True, LEFT, RIGHT, KEEP, PRECISION, D, BLOCK_D, CHUNK, UPCAST, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    total *= softmax_scale * (256.0 / KEEP)
    store_rows(grad_q + row * stride_dt + head * stride_dh, stride_dt, first, queries, total, BLOCK_M, D, BLOCK_D)


def varlen_attention_dq(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    """Gradient of ``q (T, H, d)``, and delta ``(H, T)`` float32."""
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    if len(q) == 0:
        return grad_q, delta
    with on_device(q):
        launch = tile("varlen_attention_dq", q, setting)
        blocks, size = block_list(setting.cu_seqlens_q, len(q), launch["BLOCK_M"], last_first=True)
        _varlen_attention_dq_kernel[(size, q.shape[1])](
            *(q, k, v, out, grad, lse, delta, grad_q, *setting.tensors, blocks),
            *(setting.batch, len(q), setting.left, setting.right, setting.scale * LOG2E, setting.scale),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            *(*out.stride()[:2], *grad.stride()[:2], *grad_q.stride()[:2]),
            **flags(q, k, setting),
            **launch,
        )
    return grad_q, delta
