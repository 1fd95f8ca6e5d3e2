"""Packed attention, forward: one program attends with BLOCK_M queries of one sequence and head to all keys they see.

It visits the keys in tiles, with an online softmax in base 2: the maximum, the sum of weights and the weighted sum of
values of each query stay in registers, and the scale is part of the exponent's multiply-add. Tiles of which every query
sees all keys skip the mask, in the same loop. Dropout removes weights from the weighted sum, not from the sum that
divides it. Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import tuned
from dqcore.kernels.common import bound, multiplicand, next_power_of_2, on_device
from dqcore.kernels.dropout_mask import keep_tile
from dqcore.kernels.launch import launch
from dqcore.kernels.products import product, products
from dqcore.kernels.sequences import (
    block_list,
    extent,
    key_tiles,
    listed,
    load_rows,
    matrix,
    prefix_of,
    store_rows,
    visible,
)
from dqcore.kernels.setting import Setting

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)
#: Numbers that change from batch to batch: Triton must not compile anew if one is 1 or divisible by 16.
VARYING = ["B", "T", "S", "left", "right"]
#: Small tensors that may start at any address; nor if one is aligned to 16 bytes.
SMALL = ["cu_seqlens_q", "cu_seqlens_k", "prefix_lengths", "seed"]


def padded(dim: int) -> int:
    """Channels of a block that holds a whole head: a power of two, and at least a tensor core's 16."""
    return max(16, next_power_of_2(dim))


def candidate(
    block_m: int, block_n: int, chunk: int, num_warps: int, num_stages: int, maxnreg: int = 0, split: int = 0
) -> dict[str, int]:
    """A tile of BLOCK_M queries and BLOCK_N keys, the channels that one product of them takes, and launch options.

    ``maxnreg`` is the most registers of a thread, so that one more block fits a multiprocessor; 0 leaves them to ptxas.
    ``split`` is 1 where six products of bfloat16 parts stand for three of TF32 (:mod:`dqcore.kernels.products`).
    """
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "CHUNK": chunk,
        "num_warps": num_warps,
        "num_stages": num_stages,
        "maxnreg": maxnreg,
        "split": split,
    }


#: What ``benchmarks/tune.py`` tries: products of whole heads (CHUNK exceeds them) for half precision, few channels at a
#: time for float32.
CANDIDATES = [
    *(candidate(m, n, 256, *rest) for m, n, *rest in (
        (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 8, 2, 128), (128, 64, 8, 3, 128), (128, 64, 8, 1),
        (128, 64, 4, 3), (128, 32, 8, 2), (128, 32, 8, 3), (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2),
        (64, 64, 4, 2, 168), (64, 64, 4, 3, 168), (64, 64, 8, 1), (64, 32, 4, 2), (64, 32, 4, 3), (64, 32, 8, 1),
    )),
    *(candidate(m, n, chunk, warps, 1) for m, n, chunk, warps in (
        (32, 32, 16, 4), (32, 32, 16, 8), (32, 32, 32, 8), (64, 32, 16, 4), (64, 32, 16, 8),
        (64, 32, 32, 8), (64, 64, 32, 8),
    )),
    *(candidate(m, n, 256, warps, stages, 0, 1) for m, n, warps, stages in (
        (128, 32, 8, 2), (128, 32, 8, 1), (128, 64, 8, 1), (64, 32, 4, 2), (64, 32, 4, 1),
    )),
]  # fmt: skip


@triton.jit
def _attend(
    state, query, q, k, v, first, rows, row, n, window, scale, seed, head, masked,
    KIND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted sum of values of each query after one more tile of keys."""
    largest, total, mixed = state
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    key = multiplicand(load_rows(k, n * BLOCK_N, BLOCK_N, KIND.D, KIND.BLOCK_D))  # (BLOCK_N, BLOCK_D)
    score = products(
        q, first, query, k, n * BLOCK_N, key, KIND, BLOCK_M, BLOCK_N, CHUNK
    )  # (BLOCK_M, BLOCK_N)  # fmt: skip
    if masked:  # a branch of the whole program: one loop keeps its loads on their way from the first tile to the last
        seen = visible(rows[:, None], columns[None, :], window, KIND.LEFT, KIND.RIGHT)
        score = tl.where(seen, score, float("-inf"))
    larger = tl.maximum(largest, tl.max(score, 1) * scale)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    weight = tl.exp2(score * scale - base[:, None])
    shrink = tl.exp2(largest - base)
    total = total * shrink + tl.sum(weight, 1)
    if KIND.KEEP < 256:
        kept = keep_tile(seed, head, row + rows, n * BLOCK_N, KIND.KEEP, BLOCK_M, BLOCK_N)
        weight = tl.where(kept, weight, 0.0)
    value = multiplicand(load_rows(v, n * BLOCK_N, BLOCK_N, KIND.D, KIND.BLOCK_D))  # (BLOCK_N, BLOCK_D)
    mixed = mixed * shrink[:, None]
    mixed = product(weight.to(value.dtype), value, mixed, KIND)  # (BLOCK_M, BLOCK_D)
    return larger, total, mixed


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=SMALL)
def _varlen_attention_fwd_kernel(
    q, kv, out, lse, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, blocks, B, T, left, right, scale,
    KIND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    BLOCK_D: tl.constexpr = KIND.BLOCK_D  # Triton 3.6 takes no field of a tuple in a shape
    k, v = kv
    inside, sequence, first = listed(blocks, tl.program_id(0), BLOCK_M)
    if not inside:
        return
    head = tl.program_id(1).to(tl.int64)
    row, queries = extent(cu_seqlens_q, sequence, B, T)
    column, keys = extent(cu_seqlens_k, sequence, B, 0)
    prefix = prefix_of(prefix_lengths, sequence, B)
    q = matrix(q, row, head, queries)
    k = matrix(k, column, head // KIND.GROUP, keys)
    v = matrix(v, column, head // KIND.GROUP, keys)
    out = matrix(out, row, head, queries)
    lse += head * T + row

    rows = first + tl.arange(0, BLOCK_M)
    query = multiplicand(load_rows(q, first, BLOCK_M, KIND.D, KIND.BLOCK_D))  # (BLOCK_M, BLOCK_D)
    state = (
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
    )
    window = (keys - queries, keys, prefix, left, right)
    whole, end, shown, gap = key_tiles(first, window, KIND.LEFT, KIND.RIGHT, BLOCK_M, BLOCK_N)
    for n in range(0, bound(end)):
        place = n + tl.where(n >= shown, gap, 0) if KIND.LEFT else n
        state = _attend(
            state, query, q, k, v, first, rows, row, place, window, scale, seed, head, n >= whole,
            KIND, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    largest, total, mixed = state
    share = tl.where(total == 0.0, 0.0, (256.0 / KIND.KEEP) / total)
    store_rows(out, first, mixed * share[:, None], BLOCK_M, KIND.D, KIND.BLOCK_D)  # (BLOCK_M, BLOCK_D)
    tl.store(lse + rows, (largest + tl.log2(total)) * LN2, mask=rows < queries)  # (BLOCK_M,)


def varlen_attention_fwd(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """``q (T, H, d)``, ``k`` and ``v (S, Hkv, d)`` -> ``(T, H, d)``, and lse ``(H, T)`` float32."""
    rows, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, rows), dtype=torch.float32, device=q.device)
    if rows == 0:
        return out, lse
    with on_device(q):
        options = tile("varlen_attention", q, setting)
        blocks, size = block_list(setting.cu_seqlens_q, rows, options["BLOCK_M"], last_first=True)
        launch(_varlen_attention_fwd_kernel, (size, heads))(
            *(packed(q), (packed(k), packed(v)), packed(out), lse, *setting.tensors, blocks),
            *(setting.batch, rows, setting.left, setting.right, setting.scale * LOG2E),
            KIND=kind(q, k, setting, options.pop("split", 0)),
            **options,
        )
    return out, lse


def packed(x: Tensor) -> tuple[Tensor, int, int]:
    """A packed tensor ``(rows, heads, d)`` as a kernel takes it: with its strides of rows and heads."""
    return x, x.stride(0), x.stride(1)


def tile(stem: str, q: Tensor, setting: Setting) -> dict[str, Any]:
    """How a kernel is launched. T and B have no say, so that a sequence's result does not depend on its batch mates."""
    dtype = "float32" if q.dtype == torch.float32 else "half"
    dropout = int(setting.keep < 256)
    options = tuned.config(stem, dtype=dtype, precision=setting.precision, dim=q.shape[2], dropout=dropout)
    most = options.get("maxnreg") or None
    if most is None and dtype == "float32":
        # Without a limit of ours ptxas may spill a few bytes to fit one more block on a multiprocessor.
        most = min(255, 65536 // (32 * options["num_warps"]))
    return options | {"CHUNK": min(options["CHUNK"], padded(q.shape[2])), "maxnreg": most, "enable_fp_fusion": True}


class Kind(NamedTuple):
    """What the attention kernels are compiled for, beside their tiles."""

    GROUP: int  # query heads that share a key head
    LEFT: bool  # whether there is a left window
    RIGHT: bool  # whether there is a right one
    KEEP: int  # of 256 weights, how many dropout keeps
    PRECISION: str  # of float32 products, see :mod:`dqcore.kernels.products`
    D: int  # channels of a head
    BLOCK_D: int  # the same, padded


def kind(q: Tensor, k: Tensor, setting: Setting, split: int) -> Kind:
    """The kind of forward and backward kernels for these tensors, and for a tile that is ``split`` or not."""
    precision = "bf16x6" if split else setting.precision
    left, right = setting.left >= 0, setting.right >= 0
    group, dim = q.shape[1] // k.shape[1], q.shape[2]
    return Kind(group, left, right, setting.keep, precision, dim, padded(dim))
