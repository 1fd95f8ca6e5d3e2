"""Attention of a few new codes to the cached past of their slot, to which the same kernel appends them.

One program takes the new queries of one slot that share a key head, the rows of one tile, past its share of the slot's
cache: the cache is cut into SPLITS equal shares where slots and heads alone would not fill the GPU. New keys are read
from where they come, not from the cache: the last share attends to them, the first writes them, and no program waits
for another. A second kernel adds the shares up, in their order. An inactive slot's programs return at once. The host
knows no length, so that a CUDA graph may hold a step. Reference: ``dqcore.ops.decode_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common, tuned
from dqcore.kernels.common import bound, on_device
from dqcore.kernels.sequences import load_rows, store_rows

LOG2E = 1.4426950408889634
PROGRAMS = 264  # enough to fill the largest GPUs, two to a multiprocessor
MAX_SPLITS = 16


#: What ``benchmarks/tune.py`` tries. BLOCK_M is how many of a slot's queries, of those that share a key head, are one
#: tile: 1 for one float32 query, which takes no matrix product; 16 or more where there are tensor cores.
CANDIDATES = [
    {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages}
    for block_m in (1, 16, 32, 64)
    for block_n in (32, 64, 128)
    for warps in (2, 4, 8)
    for stages in (2, 3)
]


def splits(programs: int, capacity: int) -> int:
    """Into how many shares each slot's cache is cut: by shapes alone, never by lengths."""
    wanted = triton.cdiv(PROGRAMS, max(1, programs))
    return min(triton.next_power_of_2(wanted), MAX_SPLITS, max(1, triton.next_power_of_2(capacity // 128)))


@triton.jit
def _rests(active, slot):
    if active is None:
        return False
    else:
        return tl.load(active + slot) == 0


@triton.jit
def _tile_of_keys(
    state, query, k, v, stride_k, stride_v, first, count, last, scale,
    PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted sum after keys ``first`` to ``count``, of which a row sees those up to ``last``."""
    largest, total, mixed = state
    columns = first + tl.arange(0, BLOCK_N)
    key = load_rows(k, stride_k, first, count, BLOCK_N, D, BLOCK_D, UPCAST)
    if BLOCK_M == 1:
        score = tl.sum(query * key.to(tl.float32), 1)[None, :]
    else:
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    score = tl.where((columns < count)[None, :] & (columns[None, :] <= last[:, None]), score, float("-inf"))
    larger = tl.maximum(largest, tl.max(score, 1) * scale)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    weight = tl.exp2(score * scale - base[:, None])
    shrink = tl.exp2(largest - base)
    value = load_rows(v, stride_v, first, count, BLOCK_N, D, BLOCK_D, UPCAST)
    if BLOCK_M == 1:
        mixed = mixed * shrink[:, None] + tl.sum(tl.trans(weight) * value.to(tl.float32), 0)[None, :]
    else:
        mixed = tl.dot(weight.to(value.dtype), value, mixed * shrink[:, None], input_precision=PRECISION)
    return larger, total * shrink + tl.sum(weight, 1), mixed


@triton.jit(do_not_specialize=["N", "capacity"])
def _decode_attention_kernel(
    q, k_new, v_new, k_cache, v_cache, out, parts, sums, lengths, active, N, capacity, scale,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh, stride_vb, stride_vn, stride_vh,
    stride_kcb, stride_kct, stride_kch, stride_vcb, stride_vct, stride_vch, stride_ob, stride_on, stride_oh,
    GROUP: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    slot, key_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    block, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    new, member = row // GROUP, row % GROUP
    d = tl.arange(0, BLOCK_D)
    where = (row < N * GROUP)[:, None] & (d < D)[None, :]
    head = key_head * GROUP + member
    place = slot * stride_ob + new.to(tl.int64) * stride_on + head * stride_oh
    if _rests(active, slot):
        if split == 0:
            nothing = tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty)
            tl.store(out + place[:, None] + d[None, :], nothing, mask=where)
        return
    length = tl.load(lengths + slot)
    used = tl.minimum(tl.maximum(length, 0), capacity)
    room = tl.minimum(N, capacity - used)
    k_new += slot * stride_kb + key_head * stride_kh
    v_new += slot * stride_vb + key_head * stride_vh
    k_cache += slot * stride_kcb + key_head * stride_kch
    v_cache += slot * stride_vcb + key_head * stride_vch
    if (block == 0) & (split == 0):
        for first in range(0, bound(room, INTERPRETED), BLOCK_N):
            key = load_rows(k_new, stride_kn, first, room, BLOCK_N, D, BLOCK_D, False)
            store_rows(k_cache + used.to(tl.int64) * stride_kct, stride_kct, first, room, key, BLOCK_N, D, BLOCK_D)
            value = load_rows(v_new, stride_vn, first, room, BLOCK_N, D, BLOCK_D, False)
            store_rows(v_cache + used.to(tl.int64) * stride_vct, stride_vct, first, room, value, BLOCK_N, D, BLOCK_D)

    q += slot * stride_qb
    query = tl.load(q + (new.to(tl.int64) * stride_qn + head * stride_qh)[:, None] + d[None, :], mask=where, other=0.0)
    if UPCAST or BLOCK_M == 1:
        query = query.to(tl.float32)
    state = (
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
    )
    share = tl.cdiv(tl.cdiv(used, BLOCK_N), SPLITS) * BLOCK_N
    begin, end = tl.minimum(split * share, used), tl.minimum((split + 1) * share, used)
    for first in range(bound(begin, INTERPRETED), bound(end, INTERPRETED), BLOCK_N):
        state = _tile_of_keys(
            state, query, k_cache, v_cache, stride_kct, stride_vct, first, end, row * 0 + capacity, scale,
            PRECISION, D, BLOCK_D, UPCAST, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    if split == SPLITS - 1:
        for first in range(0, bound(room, INTERPRETED), BLOCK_N):
            state = _tile_of_keys(
                state, query, k_new, v_new, stride_kn, stride_vn, first, room, new, scale,
                PRECISION, D, BLOCK_D, UPCAST, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    largest, total, mixed = state
    if SPLITS == 1:
        mixed = mixed * tl.where(total == 0.0, 0.0, 1.0 / total)[:, None]
        tl.store(out + place[:, None] + d[None, :], mixed.to(out.dtype.element_ty), mask=where)
    else:
        entry = ((slot * tl.num_programs(1) + key_head) * (N * GROUP) + row) * SPLITS + split
        tl.store(parts + entry[:, None] * D + d[None, :], mixed, mask=where)
        tl.store(sums + 2 * entry, largest, mask=row < N * GROUP)
        tl.store(sums + 2 * entry + 1, total, mask=row < N * GROUP)


@triton.jit(do_not_specialize=["N"])
def _merge_kernel(
    parts, sums, out, active, N, stride_ob, stride_on, stride_oh,
    GROUP: tl.constexpr, SPLITS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    slot, key_head, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if _rests(active, slot):
        return
    split, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    entry = ((slot * tl.num_programs(1) + key_head) * (N * GROUP) + row) * SPLITS + split
    largest, total = tl.load(sums + 2 * entry), tl.load(sums + 2 * entry + 1)
    highest = tl.max(largest, 0)
    weight = tl.exp2(largest - tl.where(highest == float("-inf"), 0.0, highest))
    mixed = tl.load(parts + entry[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    whole = tl.sum(total * weight, 0)
    result = tl.sum(mixed * weight[:, None], 0) * tl.where(whole == 0.0, 0.0, 1.0 / whole)
    place = slot * stride_ob + (row // GROUP) * stride_on + (key_head * GROUP + row % GROUP) * stride_oh
    tl.store(out + place + d, result.to(out.dtype.element_ty), mask=d < D)


def decode_attention_fwd(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    active: Tensor | None,
    scale: float,
    precision: str,
) -> Tensor:
    """``q (B, n, H, d)`` -> the same shape; appends to ``k_cache`` and ``v_cache (B, C, Hkv, d)``."""
    batch, new, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    key_heads, group = k_cache.shape[2], heads // k_cache.shape[2]
    with on_device(q):
        dtype = "float32" if q.dtype == torch.float32 else "half"
        config = tuned.config("decode_attention", dtype=dtype, dim=dim, rows=new * group)
    blocks = triton.cdiv(new * group, config["BLOCK_M"])
    shares = splits(batch * key_heads * blocks, k_cache.shape[1])
    entries = batch * heads * new * shares if shares > 1 else 0
    parts = torch.empty((entries, dim), dtype=torch.float32, device=q.device)
    sums = torch.empty((entries, 2), dtype=torch.float32, device=q.device)
    shape = {"GROUP": group, "SPLITS": shares, "D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim))}
    with on_device(q):
        _decode_attention_kernel[(batch, key_heads, blocks * shares)](
            *(q, k_new, v_new, k_cache, v_cache, out, parts, sums, cache_lengths, active),
            *(new, k_cache.shape[1], scale * LOG2E),
            *(*q.stride()[:3], *k_new.stride()[:3], *v_new.stride()[:3]),
            *(*k_cache.stride()[:3], *v_cache.stride()[:3], *out.stride()[:3]),
            **shape,
            PRECISION=precision,
            UPCAST=common.INTERPRETED,
            INTERPRETED=common.INTERPRETED,
            enable_fp_fusion=True,
            **config,
        )
        if shares > 1:
            _merge_kernel[(batch, key_heads, new * group)](
                parts, sums, out, active, new, *out.stride()[:3], **shape, num_warps=4
            )
    return out
