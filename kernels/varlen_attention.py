"""Packed attention, forward: one program takes BLOCK_M queries of one sequence and head past the keys that they see.

Online softmax in base 2: a running maximum, sum and weighted sum of values a query stay in registers; the scale goes
into the exponent's one multiply-add. Tiles that every query sees whole are not masked. Dropout leaves the sum alone and
takes weights out of the weighted sum. Reference: ``dqcore.ops.varlen_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common, tuned
from dqcore.kernels.common import bound, on_device
from dqcore.kernels.dropout_mask import keep_tile
from dqcore.kernels.sequences import (
    block_list,
    extent,
    key_tiles,
    listed,
    load_rows,
    prefix_of,
    products,
    store_rows,
    visible,
)
from dqcore.kernels.setting import Setting

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)
#: Arguments that change from batch to batch: no kernel is compiled anew for them, nor for where these tensors start.
VARYING = ["B", "T", "S", "left", "right"]
LENGTHS = ["cu_seqlens_q", "cu_seqlens_k", "prefix_lengths", "seed"]


def padded(dim: int) -> int:
    """Channels of a block that holds whole heads: a power of two, no smaller than a tensor core's 16."""
    return max(16, triton.next_power_of_2(dim))


def candidate(block_m: int, block_n: int, chunk: int, num_warps: int, num_stages: int) -> dict[str, int]:
    """A tile of queries and keys, the channels of one product of theirs, and how it is launched."""
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "CHUNK": chunk,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


#: What ``benchmarks/tune.py`` tries: whole heads (CHUNK above any size) for tensor cores, few channels for float32.
CANDIDATES = [
    *(candidate(m, n, 256, warps, stages) for m, n, warps, stages in (
        (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 8, 1), (128, 64, 4, 3), (128, 32, 8, 2),
        (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 8, 1), (64, 32, 4, 2), (64, 32, 8, 1),
    )),
    *(candidate(m, n, chunk, warps, 1) for m, n, chunk, warps in (
        (32, 32, 16, 4), (32, 32, 16, 8), (32, 32, 32, 8), (64, 32, 16, 4), (64, 32, 16, 8),
        (64, 32, 32, 8), (64, 64, 32, 8),
    )),
]  # fmt: skip


@triton.jit
def _attend(
    state, query, q, k, v, stride_q, stride_k, stride_v, first, rows, row, n, queries, keys, window, scale, seed, head,
    MASKED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of keys: maximum, sum and weighted sum of values after it."""
    largest, total, mixed = state
    columns = n * BLOCK_N + tl.arange(0, BLOCK_N)
    key = load_rows(k, stride_k, n * BLOCK_N, keys, BLOCK_N, D, BLOCK_D, UPCAST)
    score = products(
        q, stride_q, first, queries, query, k, stride_k, n * BLOCK_N, keys, key,
        BLOCK_M, BLOCK_N, PRECISION, D, BLOCK_D, CHUNK, UPCAST,
    )  # fmt: skip
    if MASKED:
        seen = visible(rows[:, None], columns[None, :], window, LEFT, RIGHT)
        score = tl.where(seen, score, float("-inf"))
    larger = tl.maximum(largest, tl.max(score, 1) * scale)
    base = tl.where(larger == float("-inf"), 0.0, larger) if MASKED else larger
    weight = tl.exp2(score * scale - base[:, None])
    shrink = tl.exp2(largest - base)
    total = total * shrink + tl.sum(weight, 1)
    if KEEP < 256:
        weight = tl.where(keep_tile(seed, head, row + rows, n * BLOCK_N, KEEP, BLOCK_M, BLOCK_N), weight, 0.0)
    value = load_rows(v, stride_v, n * BLOCK_N, keys, BLOCK_N, D, BLOCK_D, UPCAST)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * shrink[:, None], input_precision=PRECISION)
    return larger, total, mixed


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=LENGTHS)
def _varlen_attention_fwd_kernel(
    q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, blocks, B, T, left, right, scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
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
    q += row * stride_qt + head * stride_qh
    k += column * stride_kt + head // GROUP * stride_kh
    v += column * stride_vt + head // GROUP * stride_vh
    out += row * stride_ot + head * stride_oh
    lse += head * T + row

    rows = first + tl.arange(0, BLOCK_M)
    query = load_rows(q, stride_qt, first, queries, BLOCK_M, D, BLOCK_D, UPCAST)
    state = (
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
    )
    window = (keys - queries, keys, prefix, left, right)
    whole, end, shown, gap = key_tiles(first, window, LEFT, RIGHT, BLOCK_M, BLOCK_N)
    if not LEFT:
        for n in range(0, bound(whole, INTERPRETED)):
            state = _attend(
                state, query, q, k, v, stride_qt, stride_kt, stride_vt, first, rows, row, n, queries, keys, window,
                scale, seed, head, False, LEFT, RIGHT, KEEP, PRECISION, D, BLOCK_D, CHUNK, UPCAST, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    for n in range(bound(whole, INTERPRETED), bound(end, INTERPRETED)):
        place = n + tl.where(n >= shown, gap, 0) if LEFT else n
        state = _attend(
            state, query, q, k, v, stride_qt, stride_kt, stride_vt, first, rows, row, place, queries, keys, window,
            scale, seed, head, True, LEFT, RIGHT, KEEP, PRECISION, D, BLOCK_D, CHUNK, UPCAST, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    largest, total, mixed = state
    share = tl.where(total == 0.0, 0.0, (256.0 / KEEP) / total)
    store_rows(out, stride_ot, first, queries, mixed * share[:, None], BLOCK_M, D, BLOCK_D)
    tl.store(lse + rows, (largest + tl.log2(total)) * LN2, mask=rows < queries)


def varlen_attention_fwd(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """``q (T, H, d)``, ``k`` and ``v (S, Hkv, d)`` -> ``(T, H, d)`` and lse ``(H, T)`` float32."""
    rows, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, rows), dtype=torch.float32, device=q.device)
    if rows == 0:
        return out, lse
    with on_device(q):
        launch = tile("varlen_attention", q, setting)
        blocks, size = block_list(setting.cu_seqlens_q, rows, launch["BLOCK_M"], last_first=True)
        _varlen_attention_fwd_kernel[(size, heads)](
            *(q, k, v, out, lse, *setting.tensors, blocks),
            *(setting.batch, rows, setting.left, setting.right, setting.scale * LOG2E),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2]),
            **flags(q, k, setting),
            **launch,
        )
    return out, lse


def tile(stem: str, q: Tensor, setting: Setting) -> dict[str, int]:
    """How a kernel is launched: never by T or B, so that no sequence's rounding depends on its batch mates."""
    dtype = "float32" if q.dtype == torch.float32 else "half"
    dropout = int(setting.keep < 256)
    launch = tuned.config(stem, dtype=dtype, precision=setting.precision, dim=q.shape[2], dropout=dropout)
    return launch | {"CHUNK": min(launch["CHUNK"], padded(q.shape[2])), "enable_fp_fusion": True}


def flags(q: Tensor, k: Tensor, setting: Setting) -> dict[str, object]:
    """What forward and backward kernels are specialised for."""
    return {
        "GROUP": q.shape[1] // k.shape[1],
        "LEFT": setting.left >= 0,
        "RIGHT": setting.right >= 0,
        "KEEP": setting.keep,
        "PRECISION": setting.precision,
        "D": q.shape[2],
        "BLOCK_D": padded(q.shape[2]),
        "UPCAST": common.INTERPRETED,
        "INTERPRETED": common.INTERPRETED,
    }
