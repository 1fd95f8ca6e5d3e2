"""Packed attention, backward: two kernels without atomics, each of which computes the weights again.

The first takes a block of queries past the keys that they see: ``delta = sum_d(do o)``, kept for the second, and
``dq = sum_j p (dp - delta) k_j``. The second takes a block of keys past the queries that see it, of all query heads
that share its key head, and sums ``dk`` and ``dv`` in that order. Dropout's 1 / (share kept) is left to the end of the
sums, so that delta is kept times the share. Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import architecture, bound, on_device
from dqcore.kernels.dropout_mask import keep_tile, keep_tile_transposed
from dqcore.kernels.sequences import (
    block_list,
    extent,
    key_tiles,
    listed,
    load_rows,
    prefix_of,
    products,
    query_tiles,
    store_rows,
    visible,
)
from dqcore.kernels.varlen_attention import LOG2E, config, flags, padded


def query_tile(dim: int, half: bool, arch: int) -> dict[str, int]:
    """Tile of the kernel for ``dq``."""
    if not half:
        return config(32, 32, 16, 4 if dim <= 64 else 8, 1)
    if dim <= 64 or (dim <= 128 and arch in (90, 100)):
        return config(128, 64, padded(dim), 8, 2)
    return config(128, 32, padded(dim), 8, 1 if arch == 120 else 2)


def key_tile(dim: int, half: bool, arch: int, *, dropout: bool) -> dict[str, int]:
    """Tile of the kernel for ``dk`` and ``dv``."""
    if not half:
        return config(16, 64 if dropout or dim <= 64 else 32, 32, 8, 1)
    if arch in (90, 100):
        return config(64, 128, padded(dim), 8, 2) if dim <= 64 else config(32, 128, padded(dim), 8, 1 if dropout else 2)
    return config(32, 64, padded(dim), 4, 2) if dim <= 64 else config(64, 64, padded(dim), 8, 1)


@triton.jit
def _load_base(lse, rows, count):
    """Base-2 logarithm of each row's sum; inf where there is none, so that its weights are 0."""
    value = tl.load(lse + rows, mask=rows < count, other=float("-inf"))
    return tl.where(value == float("-inf"), float("inf"), value * 1.4426950408889634)


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


@triton.jit(do_not_specialize=["B", "T", "left", "right"])
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
    base = _load_base(lse + head * T + row, rows, queries)

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
    weight = tl.exp2(score * scale - _load_base(lse, rows, queries)[None, :])
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


@triton.jit(do_not_specialize=["B", "T", "S", "left", "right"])
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


def varlen_attention_bwd(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    left: int,
    right: int,
    scale: float,
    keep: int,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``q (T, H, d)``, ``k`` and ``v (S, Hkv, d)``."""
    batch, half = cu_seqlens_q.shape[0] - 1, q.dtype != torch.float32
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    special = flags(q, k, left, right, keep, precision)
    packed = (cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed)
    inputs = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    with on_device(q):
        arch = architecture()
        if len(q) > 0:
            launch = query_tile(q.shape[2], half, arch)
            blocks, size = block_list(cu_seqlens_q, len(q), launch["BLOCK_M"], last_first=True)
            _varlen_attention_dq_kernel[(size, q.shape[1])](
                *(q, k, v, out, grad, lse, delta, grad_q, *packed, blocks),
                *(batch, len(q), left, right, scale * LOG2E, scale),
                *(*inputs, *out.stride()[:2], *grad.stride()[:2], *grad_q.stride()[:2]),
                **special,
                **launch,
            )
        if len(k) > 0:
            launch = key_tile(q.shape[2], half, arch, dropout=keep < 256)
            blocks, size = block_list(cu_seqlens_k, len(k), launch["BLOCK_N"], last_first=False)
            _varlen_attention_dkv_kernel[(size, k.shape[1])](
                *(q, k, v, grad, lse, delta, grad_k, grad_v, *packed, blocks),
                *(batch, len(q), len(k), left, right, scale * LOG2E, scale),
                *(*inputs, *grad.stride()[:2], *grad_k.stride()[:2]),
                **special,
                **launch,
            )
    return grad_q, grad_k, grad_v
