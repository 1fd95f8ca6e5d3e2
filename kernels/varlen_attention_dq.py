"""Packed attention, backward to the queries: one program takes BLOCK_M queries past all keys they see.

With the attention weights ``p`` computed again, ``dp = do v^T`` and ``delta = sum_d(do o)``, the gradient is ``dq =
scale sum_j p (dp - delta) k_j``. ``delta`` and the lse in base 2 are written as well, for
:mod:`dqcore.kernels.varlen_attention_dkv`. With dropout the kept weights count 256 / KEEP times: we multiply by that
once, at the end of the sum, and so store ``delta`` times KEEP / 256. Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, multiplicand, on_device
from dqcore.kernels.dropout_mask import keep_tile
from dqcore.kernels.launch import launch
from dqcore.kernels.products import product, products
from dqcore.kernels.sequences import (
    block_list,
    extent,
    key_tiles,
    listed,
    load_base,
    load_rows,
    matrix,
    prefix_of,
    store_rows,
    visible,
)
from dqcore.kernels.setting import Setting
from dqcore.kernels.varlen_attention import LOG2E, SMALL, VARYING, candidate, kind, packed, tile

CANDIDATES = [
    *(candidate(m, n, 256, *rest) for m, n, *rest in (
        (128, 64, 8, 2), (128, 64, 8, 2, 128), (128, 64, 8, 3, 128), (128, 64, 8, 3), (128, 64, 8, 1), (128, 32, 8, 2),
        (128, 32, 8, 3), (128, 32, 8, 3, 128), (128, 32, 8, 1), (64, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2),
        (64, 64, 4, 3, 168), (64, 64, 4, 1), (64, 64, 8, 1), (64, 32, 4, 2), (64, 32, 4, 3), (64, 32, 4, 3, 128),
        (64, 32, 4, 1), (64, 32, 8, 1),
    )),
    *(candidate(m, n, chunk, warps, 1) for m, n, chunk, warps in (
        (32, 32, 16, 4), (32, 32, 16, 8), (32, 32, 32, 8), (32, 64, 16, 4), (32, 64, 16, 8),
        (64, 32, 16, 4), (64, 32, 16, 8), (64, 32, 32, 8),
    )),
    *(candidate(m, n, 256, warps, stages, 0, 1) for m, n, warps, stages in (
        (128, 32, 8, 2), (128, 32, 8, 1), (64, 32, 4, 2), (64, 32, 4, 1),
    )),
]  # fmt: skip


@triton.jit
def _dq_tile(
    total, loaded, q, grad, k, v, first, rows, n, window, scale, dropout, masked,
    KIND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dq`` after one more tile of keys; ``loaded`` is what the program has loaded of its queries."""
    query, grad_out, base, pull = loaded
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    key = multiplicand(load_rows(k, n * BLOCK_N, BLOCK_N, KIND.D, KIND.BLOCK_D))  # (BLOCK_N, BLOCK_D)
    score = products(
        q, first, query, k, n * BLOCK_N, key, KIND, BLOCK_M, BLOCK_N, CHUNK
    )  # (BLOCK_M, BLOCK_N)  # fmt: skip
    if masked:
        seen = visible(rows[:, None], columns[None, :], window, KIND.LEFT, KIND.RIGHT)
        score = tl.where(seen, score, float("-inf"))
    weight = tl.exp2(score * scale - base[:, None])
    value = multiplicand(load_rows(v, n * BLOCK_N, BLOCK_N, KIND.D, KIND.BLOCK_D))  # (BLOCK_N, BLOCK_D)
    grad_weight = products(
        grad, first, grad_out, v, n * BLOCK_N, value, KIND, BLOCK_M, BLOCK_N, CHUNK
    )  # (BLOCK_M, BLOCK_N)  # fmt: skip
    if KIND.KEEP < 256:
        seed, head, row = dropout
        kept = keep_tile(seed, head, row + rows, n * BLOCK_N, KIND.KEEP, BLOCK_M, BLOCK_N)
        grad_weight = tl.where(kept, grad_weight, 0.0)
    grad_score = weight * (grad_weight - pull[:, None])
    return product(grad_score.to(key.dtype), key, total, KIND)  # (BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=SMALL)
def _varlen_attention_dq_kernel(
    q, kv, out, grad, grad_q, sums, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, blocks,
    B, T, left, right, scales,
    KIND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    BLOCK_D: tl.constexpr = KIND.BLOCK_D  # Triton 3.6 takes no field of a tuple in a shape
    k, v = kv
    lse, base_of, delta = sums
    scale, softmax_scale = scales
    inside, sequence, first = listed(blocks, tl.program_id(0), BLOCK_M)
    if not inside:
        return
    head = tl.program_id(1).to(tl.int64)
    row, queries = extent(cu_seqlens_q, sequence, B, T)
    column, keys = extent(cu_seqlens_k, sequence, B, 0)
    prefix = prefix_of(prefix_lengths, sequence, B)
    k = matrix(k, column, head // KIND.GROUP, keys)
    v = matrix(v, column, head // KIND.GROUP, keys)
    q = matrix(q, row, head, queries)
    grad = matrix(grad, row, head, queries)

    rows = first + tl.arange(0, BLOCK_M)
    query = multiplicand(load_rows(q, first, BLOCK_M, KIND.D, KIND.BLOCK_D))  # (BLOCK_M, BLOCK_D)
    grad_out = multiplicand(load_rows(grad, first, BLOCK_M, KIND.D, KIND.BLOCK_D))  # (BLOCK_M, BLOCK_D)
    result = load_rows(matrix(out, row, head, queries), first, BLOCK_M, KIND.D, KIND.BLOCK_D)  # (BLOCK_M, BLOCK_D)
    pull = tl.sum(grad_out.to(tl.float32) * result.to(tl.float32), 1) * (KIND.KEEP / 256.0)
    tl.store(delta + head * T + row + rows, pull, mask=rows < queries)  # (BLOCK_M,)
    base = load_base(lse + head * T + row, rows, queries)  # (BLOCK_M,)
    tl.store(base_of + head * T + row + rows, base, mask=rows < queries)  # (BLOCK_M,)

    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    loaded, dropout = (query, grad_out, base, pull), (seed, head, row)
    window = (keys - queries, keys, prefix, left, right)
    whole, end, shown, gap = key_tiles(first, window, KIND.LEFT, KIND.RIGHT, BLOCK_M, BLOCK_N)
    for n in range(0, bound(end)):
        place = n + tl.where(n >= shown, gap, 0) if KIND.LEFT else n
        total = _dq_tile(
            total, loaded, q, grad, k, v, first, rows, place, window, scale, dropout, n >= whole,
            KIND, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    total *= softmax_scale * (256.0 / KIND.KEEP)
    store_rows(matrix(grad_q, row, head, queries), first, total, BLOCK_M, KIND.D, KIND.BLOCK_D)  # (BLOCK_M, BLOCK_D)


def varlen_attention_dq(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting, grad_q: Tensor
) -> Tensor:
    """Write the gradient of ``q (T, H, d)``; ``(2, H, T)`` float32: lse in base 2 (inf where no key is seen), delta."""
    sums = torch.empty((2, *lse.shape), dtype=torch.float32, device=q.device)
    if len(q) == 0:
        return sums
    with on_device(q):
        options = tile("varlen_attention_dq", q, setting)
        blocks, size = block_list(setting.cu_seqlens_q, len(q), options["BLOCK_M"], last_first=True)
        launch(_varlen_attention_dq_kernel, (size, q.shape[1]))(
            *(packed(q), (packed(k), packed(v)), packed(out), packed(grad), packed(grad_q), (lse, sums[0], sums[1])),
            *(*setting.tensors, blocks, setting.batch, len(q), setting.left, setting.right),
            (setting.scale * LOG2E, setting.scale),
            KIND=kind(q, k, setting, options.pop("split", 0)),
            **options,
        )
    return sums
