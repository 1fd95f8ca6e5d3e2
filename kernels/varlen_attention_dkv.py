"""Packed attention, backward to keys and values: one program takes BLOCK_N keys past all queries that see them.

It goes through the query heads that share the key head in their order, so that ``dk = scale sum_i p (dp - delta) q_i``
and ``dv = sum_i p do_i`` are added in the same order in every run. The weights ``p`` are computed again, in tiles of
``(keys, queries)``. With dropout both sums are multiplied by 256 / KEEP once, at their end; ``delta`` comes multiplied
by KEEP / 256 (:mod:`dqcore.kernels.varlen_attention_dq`). Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import IN_INTERPRETER, architecture, bound, multiplicand, on_device
from dqcore.kernels.dropout_mask import keep_tile_transposed
from dqcore.kernels.launch import launch
from dqcore.kernels.products import product, products
from dqcore.kernels.sequences import (
    block_list,
    extent,
    listed,
    load_rows,
    matrix,
    prefix_of,
    query_tiles,
    store_rows,
    visible,
)
from dqcore.kernels.setting import Setting
from dqcore.kernels.varlen_attention import LOG2E, SMALL, VARYING, candidate, kind, packed, tile

CANDIDATES = [
    *(candidate(m, n, 256, *rest) for m, n, *rest in (
        (128, 64, 8, 1), (64, 128, 8, 2), (64, 128, 8, 1), (64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 8, 2),
        (64, 64, 8, 1), (32, 128, 8, 2), (32, 128, 8, 3), (32, 128, 8, 1), (16, 128, 8, 1), (16, 128, 8, 2),
        (32, 64, 4, 3), (32, 64, 4, 2), (32, 64, 4, 1), (16, 64, 4, 3), (16, 64, 4, 4), (16, 64, 4, 2),
        (16, 64, 4, 1), (32, 64, 4, 3, 168),
    )),
    *(candidate(m, n, chunk, warps, 1) for m, n, chunk, warps in (
        (16, 32, 32, 8), (16, 64, 16, 8), (16, 64, 32, 8), (16, 64, 16, 16), (32, 64, 16, 16),
        (32, 64, 32, 8), (32, 64, 64, 8),
    )),
    *(candidate(m, n, 256, warps, stages, 0, 1) for m, n, warps, stages in (
        (32, 128, 8, 2), (32, 128, 8, 1), (32, 64, 4, 1), (16, 64, 4, 1),
    )),
]  # fmt: skip


@triton.jit
def settled(total):
    """A sum of products to which no tensor core is still adding: an operation that does nothing waits for it.

    Hopper goes on adding while the next tile is loaded. With dropout ptxas moves the sum between registers meanwhile,
    and so makes each step of every product wait for the one before.
    """
    if IN_INTERPRETER:
        return total
    else:
        return tl.inline_asm_elementwise("", "=f,0", [total], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _incoming(
    value, v, grad, first, m, rows, dropout,
    KIND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of the output's gradient, the gradient of the weights by it, and which weights survived dropout."""
    grad_out = multiplicand(load_rows(grad, m * BLOCK_M, BLOCK_M, KIND.D, KIND.BLOCK_D))  # (BLOCK_M, BLOCK_D)
    grad_weight = products(
        v, first, value, grad, m * BLOCK_M, grad_out, KIND, BLOCK_N, BLOCK_M, CHUNK
    )  # (BLOCK_N, BLOCK_M)  # fmt: skip
    if KIND.KEEP < 256:
        seed, head, row = dropout
        survives = keep_tile_transposed(seed, head, row + rows, first, KIND.KEEP, BLOCK_M, BLOCK_N)
    else:
        survives = grad_weight == grad_weight  # unused
    return grad_out, grad_weight, survives


@triton.jit
def _dkv_tile(
    totals, loaded, k, v, q, grad, sums, columns, first, m, window, scale, dropout, masked,
    KIND: tl.constexpr, HOPPER: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dk`` and ``dv`` after one more tile of queries; ``loaded`` is what the program has loaded of its keys."""
    grad_k, grad_v = totals
    key, value = loaded
    base, delta = sums
    _, _, queries = q
    rows = m * BLOCK_M + tl.arange(0, BLOCK_M)
    query = multiplicand(load_rows(q, m * BLOCK_M, BLOCK_M, KIND.D, KIND.BLOCK_D))  # (BLOCK_M, BLOCK_D)
    score = products(
        k, first, key, q, m * BLOCK_M, query, KIND, BLOCK_N, BLOCK_M, CHUNK
    )  # (BLOCK_N, BLOCK_M)  # fmt: skip
    if HOPPER:
        grad_out, grad_weight, survives = _incoming(
            value, v, grad, first, m, rows, dropout, KIND, CHUNK, BLOCK_M, BLOCK_N
        )
    if masked:
        seen = visible(rows[None, :], columns[:, None], window, KIND.LEFT, KIND.RIGHT)
        score = tl.where(seen, score, float("-inf"))
    largest = tl.load(base + rows, mask=rows < queries, other=float("inf"))  # (BLOCK_M,)
    weight = tl.exp2(score * scale - largest[None, :])
    if not HOPPER:
        grad_out, grad_weight, survives = _incoming(
            value, v, grad, first, m, rows, dropout, KIND, CHUNK, BLOCK_M, BLOCK_N
        )
    kept = weight
    if KIND.KEEP < 256:
        kept = tl.where(survives, weight, 0.0)
        if not HOPPER:  # where the other way below spills
            grad_weight = tl.where(survives, grad_weight, 0.0)
    grad_v = product(kept.to(query.dtype), grad_out, grad_v, KIND)  # (BLOCK_N, BLOCK_D)
    pull = tl.load(delta + rows, mask=rows < queries, other=0.0)  # (BLOCK_M,)
    if HOPPER and KIND.KEEP < 256:
        grad_score = kept * grad_weight - weight * pull[None, :]
    else:
        grad_score = weight * (grad_weight - pull[None, :])
    grad_k = product(grad_score.to(query.dtype), query, grad_k, KIND)  # (BLOCK_N, BLOCK_D)
    if HOPPER and KIND.KEEP < 256:
        return settled(grad_k), settled(grad_v)
    else:
        return grad_k, grad_v


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=SMALL)
def _varlen_attention_dkv_kernel(
    q, kv, grads, sums, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, blocks,
    B, T, S, left, right, scales,
    KIND: tl.constexpr, HOPPER: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    BLOCK_D: tl.constexpr = KIND.BLOCK_D  # Triton 3.6 takes no field of a tuple in a shape
    k, v = kv
    grad, grad_k, grad_v = grads
    base, delta = sums
    scale, softmax_scale = scales
    inside, sequence, first = listed(blocks, tl.program_id(0), BLOCK_N)
    if not inside:
        return
    key_head = tl.program_id(1).to(tl.int64)
    row, queries = extent(cu_seqlens_q, sequence, B, 0)
    column, keys = extent(cu_seqlens_k, sequence, B, S)
    prefix = prefix_of(prefix_lengths, sequence, B)
    columns = first + tl.arange(0, BLOCK_N)
    k = matrix(k, column, key_head, keys)
    v = matrix(v, column, key_head, keys)
    key = multiplicand(load_rows(k, first, BLOCK_N, KIND.D, KIND.BLOCK_D))  # (BLOCK_N, BLOCK_D)
    value = multiplicand(load_rows(v, first, BLOCK_N, KIND.D, KIND.BLOCK_D))  # (BLOCK_N, BLOCK_D)
    loaded = (key, value)
    totals = (tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32))
    window = (keys - queries, keys, prefix, left, right)
    begin, whole, end = query_tiles(first, queries, window, KIND.LEFT, KIND.RIGHT, BLOCK_M, BLOCK_N)
    for member in range(0, KIND.GROUP):
        head = key_head * KIND.GROUP + member
        query = matrix(q, row, head, queries)
        grad_out = matrix(grad, row, head, queries)
        own_sums = (base + (head * T + row), delta + (head * T + row))
        dropout = (seed, head, row)
        for m in range(bound(begin), bound(end)):
            totals = _dkv_tile(
                totals, loaded, k, v, query, grad_out, own_sums, columns, first, m, window, scale, dropout, m < whole,
                KIND, HOPPER, CHUNK, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    by_key, by_value = totals
    by_key *= softmax_scale * (256.0 / KIND.KEEP)
    by_value *= 256.0 / KIND.KEEP
    store_rows(matrix(grad_k, column, key_head, keys), first, by_key, BLOCK_N, KIND.D, KIND.BLOCK_D)
    store_rows(matrix(grad_v, column, key_head, keys), first, by_value, BLOCK_N, KIND.D, KIND.BLOCK_D)


def varlen_attention_dkv(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sums: Tensor, setting: Setting, grads: tuple[Tensor, Tensor]
) -> None:
    """Write the gradients of ``k`` and ``v (S, Hkv, d)``; ``sums`` is what :func:`varlen_attention_dq` returned."""
    if len(k) == 0:
        return
    with on_device(q):
        by_key, by_value = grads
        options = tile("varlen_attention_dkv", q, setting)
        blocks, size = block_list(setting.cu_seqlens_k, len(k), options["BLOCK_N"], last_first=False)
        launch(_varlen_attention_dkv_kernel, (size, k.shape[1]))(
            *(packed(q), (packed(k), packed(v)), (packed(grad), packed(by_key), packed(by_value)), (sums[0], sums[1])),
            *(*setting.tensors, blocks, setting.batch, len(q), len(k), setting.left, setting.right),
            (setting.scale * LOG2E, setting.scale),
            KIND=kind(q, k, setting, options.pop("split", 0)),
            HOPPER=architecture() // 10 == 9,
            **options,
        )
