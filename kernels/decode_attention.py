"""Attention of a few new codes to the cached past of their slot; the same kernel appends their keys to the cache.

One program attends with the new queries of one slot that share a key head, as the rows of one tile, to its share of the
slot's cache. Where slots and heads alone would not fill the GPU, the cache is cut into SPLITS equal shares, which a
second kernel adds up in their order. The new keys and values are read from where they come, not from the cache: the
program of the last share attends to them and that of the first share appends them, so that none waits for another.
Programs of a slot that is not active return at once. No launch depends on the lengths, so a CUDA graph may hold a step.

A cache of 8-bit integers is read as it is: the integers are multiplied, and a key's scale multiplies its score, a
value's its weight. New rows are quantized by both programs that read them (``cached_rows``): a token sees itself as all
later ones will see it.
Reference: ``dqcore.ops.decode_attention``.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import tuned
from dqcore.kernels.cached_rows import append_rows, as_loaded, load_cached, rows_of
from dqcore.kernels.common import bound, cdiv, multiplicand, next_power_of_2, on_device
from dqcore.kernels.launch import launch

LOG2E = 1.4426950408889634
PROGRAMS = 264  # enough to fill the largest GPUs, two to a multiprocessor
MAX_SPLITS = 16
NEW_ROWS = 16  # the tile of new rows that are kept in another dtype than they come in: to convert padding takes time

_TILES = list(itertools.product((1, 16, 32, 64), (32, 64, 128), (2, 4, 8), (2, 3), (0,)))
_LOW = list(itertools.product((1, 16), (32, 64), (1, 2, 4), (2,), (64, 80, 128)))
#: What ``benchmarks/tune.py`` tries. BLOCK_M queries of a slot that share a key head are one tile: 1 for a single
#: float32 query, which needs no matrix product, and at least 16 for tensor cores. ``maxnreg`` is the most registers of
#: a thread, so that more blocks fit a multiprocessor at once; 0 leaves them to ptxas.
CANDIDATES = [
    dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "maxnreg"), values, strict=True))
    for values in (*_TILES, *_LOW)
]


def splits(programs: int, capacity: int) -> int:
    """Into how many shares each slot's cache is cut. Shapes decide, never lengths, which the host does not know."""
    wanted = cdiv(PROGRAMS, max(1, programs))
    return min(next_power_of_2(wanted), MAX_SPLITS, max(1, next_power_of_2(capacity // 128)))


@triton.jit
def _rests(active, slot):
    if active is None:
        return False
    else:
        return tl.load(active + slot) == 0


@triton.jit
def _cells(x, slot, new, head, d):
    """Where ``x (B, n, H, D)`` has the channels ``d`` of new tokens and heads, ``(BLOCK_M, BLOCK_D)``."""
    start, stride_slot, stride_new, stride_head = x
    return start + (slot * stride_slot + new.to(tl.int64) * stride_new + head * stride_head)[:, None] + d[None, :]


@triton.jit
def _attend(
    state, query, k, v, first, last, scale,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted sum of values after the tile of keys from ``first`` on, kept as ``DTYPE``.

    Query ``i`` sees keys up to ``last[i]``, if there is a ``last``; all see no further than the rows ``k`` and ``v``.
    """
    largest, total, mixed = state
    keys, _ = k
    _, _, count = keys
    columns = first + tl.arange(0, BLOCK_N)
    key, key_scale = load_cached(k, first, DTYPE, BLOCK_N, D, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    key = multiplicand(key).to(query.dtype)
    if BLOCK_M == 1:
        score = tl.sum(query * key.to(tl.float32), 1)[None, :]
    else:
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
    if tl.int8 == DTYPE:
        score *= key_scale[None, :]
    seen = (columns < count)[None, :]
    if last is not None:
        seen &= columns[None, :] <= last[:, None]
    score = tl.where(seen, score, float("-inf"))
    larger = tl.maximum(largest, tl.max(score, 1) * scale)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    weight = tl.exp2(score * scale - base[:, None])
    shrink = tl.exp2(largest - base)
    total = total * shrink + tl.sum(weight, 1)
    value, value_scale = load_cached(v, first, DTYPE, BLOCK_N, D, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    value = multiplicand(as_loaded(value)).to(query.dtype)
    if tl.int8 == DTYPE:
        weight *= value_scale[None, :]
    mixed = mixed * shrink[:, None]
    if BLOCK_M == 1:
        mixed += tl.sum(tl.trans(weight) * value, 0)[None, :]
    else:
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision=PRECISION)  # (BLOCK_M, BLOCK_D)
    return larger, total, mixed


@triton.jit
def _store_share(shares, index, d, state, inside, where, D: tl.constexpr):
    """Write what a tile of queries found in one share of the cache; :func:`_decode_attention_merge_kernel` reads it."""
    parts, sums = shares
    largest, total, mixed = state
    tl.store(parts + index[:, None] * D + d[None, :], mixed, mask=where)  # (BLOCK_M, BLOCK_D)
    tl.store(sums + 2 * index, largest, mask=inside)  # (BLOCK_M,)
    tl.store(sums + 2 * index + 1, total, mask=inside)  # (BLOCK_M,)


@triton.jit(do_not_specialize=["N", "capacity"])
def _decode_attention_fwd_kernel(
    q, k_new, v_new, k_cache, v_cache, out, shares, lengths, active, N, capacity, scale,
    GROUP: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_NEW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    slot, key_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    block, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    new, head = row // GROUP, key_head * GROUP + row % GROUP
    d = tl.arange(0, BLOCK_D)
    where = (row < N * GROUP)[:, None] & (d < D)[None, :]
    if _rests(active, slot):
        if split == 0:
            nothing = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            tl.store(_cells(out, slot, new, head, d), nothing, mask=where)  # (BLOCK_M, BLOCK_D)
        return
    length = tl.load(lengths + slot)
    used = tl.minimum(tl.maximum(length, 0), capacity)
    room = tl.minimum(N, capacity - used)
    DTYPE: tl.constexpr = k_cache[0][0].dtype.element_ty
    k_new, v_new = rows_of(k_new, slot, key_head, room), rows_of(v_new, slot, key_head, room)
    share = tl.cdiv(tl.cdiv(used, BLOCK_N), SPLITS) * BLOCK_N
    begin, end = tl.minimum(split * share, used), tl.minimum((split + 1) * share, used)
    k_cache, v_cache = rows_of(k_cache, slot, key_head, end), rows_of(v_cache, slot, key_head, end)
    if (block == 0) & (split == 0):
        append_rows(k_cache, k_new, used, room, DTYPE, BLOCK_NEW, D, BLOCK_D)
        append_rows(v_cache, v_new, used, room, DTYPE, BLOCK_NEW, D, BLOCK_D)

    query = multiplicand(tl.load(_cells(q, slot, new, head, d), mask=where, other=0.0))  # (BLOCK_M, BLOCK_D)
    if BLOCK_M == 1:
        query = query.to(tl.float32)
    state = (
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
    )
    for first in range(bound(begin), bound(end), BLOCK_N):
        state = _attend(
            state, query, k_cache, v_cache, first, None, scale,
            DTYPE, PRECISION, D, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    if split == SPLITS - 1:
        for first in range(0, bound(room), BLOCK_NEW):
            state = _attend(
                state, query, k_new, v_new, first, new, scale, DTYPE, PRECISION, D, BLOCK_D, BLOCK_M, BLOCK_NEW
            )
    _, total, mixed = state
    if SPLITS == 1:
        mixed = mixed * tl.where(total == 0.0, 0.0, 1.0 / total)[:, None]
        tl.store(_cells(out, slot, new, head, d), mixed, mask=where)  # (BLOCK_M, BLOCK_D)
    else:
        index = ((slot * tl.num_programs(1) + key_head) * (N * GROUP) + row) * SPLITS + split
        _store_share(shares, index, d, state, row < N * GROUP, where, D)


@triton.jit(do_not_specialize=["N"])
def _decode_attention_merge_kernel(
    shares, out, active, N, GROUP: tl.constexpr, SPLITS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Add up what the programs of one query and head found in their shares of the cache."""
    parts, sums = shares
    slot, key_head, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if _rests(active, slot):
        return
    split, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    index = ((slot * tl.num_programs(1) + key_head) * (N * GROUP) + row) * SPLITS + split
    largest = tl.load(sums + 2 * index)  # (SPLITS,)
    total = tl.load(sums + 2 * index + 1)  # (SPLITS,)
    highest = tl.max(largest, 0)
    weight = tl.exp2(largest - tl.where(highest == float("-inf"), 0.0, highest))
    mixed = tl.load(parts + index[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)  # (SPLITS, BLOCK_D)
    whole = tl.sum(total * weight, 0)
    result = tl.sum(mixed * weight[:, None], 0) * tl.where(whole == 0.0, 0.0, 1.0 / whole)
    start, stride_ob, stride_on, stride_oh = out
    place = slot * stride_ob + (row // GROUP) * stride_on + (key_head * GROUP + row % GROUP) * stride_oh
    tl.store(start + place + d, result.to(start.dtype.element_ty), mask=d < D)  # (BLOCK_D,)


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
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """``q (B, n, H, d)`` -> the same shape; appends to ``k_cache`` and ``v_cache (B, C, Hkv, d)``."""
    batch, new, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    key_heads, group = k_cache.shape[2], heads // k_cache.shape[2]
    with on_device(q):
        dtype, bits = "float32" if q.dtype == torch.float32 else "half", 8 * k_cache.element_size()
        config = tuned.config("decode_attention", dtype=dtype, dim=dim, rows=new * group, bits=bits)
    blocks = cdiv(new * group, config["BLOCK_M"])
    number = splits(batch * key_heads * blocks, k_cache.shape[1])
    rows = batch * heads * new * number if number > 1 else 0
    parts = torch.empty((rows, dim), dtype=torch.float32, device=q.device)
    shares = parts, torch.empty((rows, 2), dtype=torch.float32, device=q.device)
    shape = {"GROUP": group, "SPLITS": number, "D": dim, "BLOCK_D": max(16, next_power_of_2(dim))}
    pairs = ((k_new, None), (v_new, None), (k_cache, k_scales), (v_cache, v_scales))
    tensors = ((_strided(x), _strided(x if scales is None else scales)) for x, scales in pairs)
    with on_device(q):
        launch(_decode_attention_fwd_kernel, (batch, key_heads, blocks * number))(
            *(_strided(q), *tensors, _strided(out)),
            *(shares, cache_lengths, active, new, k_cache.shape[1], scale * LOG2E),
            **shape,
            PRECISION=precision,
            BLOCK_NEW=config["BLOCK_N"] if new > NEW_ROWS and k_cache.dtype == q.dtype else NEW_ROWS,
            enable_fp_fusion=True,
            **config | {"maxnreg": config["maxnreg"] or None},
        )
        if number > 1:
            launch(_decode_attention_merge_kernel, (batch, key_heads, new * group))(
                shares, _strided(out), active, new, **shape, num_warps=4, enable_fp_fusion=True
            )
    return out


def _strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    """``(B, n, heads, ...)`` as a kernel takes it: with its strides of slots, rows and heads."""
    return x, x.stride(0), x.stride(1), x.stride(2)
