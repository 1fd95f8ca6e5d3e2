"""Which vectors chose each code, in order: a stable counting sort of the codes in one launch.

Each program counts the codes in its span of the list; a table has its counts of each code. A scan of the table says
where the vectors of each program with each code go, and each program puts its own there, in their order. So the order
is that of a stable sort in every run. Vectors without a code (negative) come last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, cdiv
from dqcore.kernels.grid import cooperative, programs, wait_for_all
from dqcore.kernels.launch import launch

BLOCK_N = 128  # vectors that a program puts in order at once: their number squared is compared
BLOCK_K = 32
TABLE = 2**22  # numbers in the table, at most


@triton.jit
def _bucket(keys, position, last, K):
    """The bucket of each vector: its code, K without one of the codebook, and K + 1 behind the end of the span."""
    key = tl.load(keys + position, mask=position < last, other=0)
    return tl.where(position < last, tl.where((key < 0) | (key >= K), K, key), K + 1)


@triton.jit
def _scan(table, offsets, totals, counts, arrived, program, K, PROGRAMS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Turn the table's counts into how many of a code come before in earlier programs, and find where codes begin."""
    start = program * BLOCK_K
    for first in range(bound(start), bound(K) + 1, PROGRAMS * BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        at = table + tl.arange(0, PROGRAMS)[:, None] * (K + 1) + k[None, :]
        number = tl.load(at, mask=(k <= K)[None, :], other=0, cache_modifier=".cg")  # (PROGRAMS, BLOCK_K)
        tl.store(at, tl.cumsum(number, 0) - number, mask=(k <= K)[None, :])
        total = tl.sum(number, 0)
        tl.store(totals + k, total, mask=k <= K)  # (BLOCK_K,)
        tl.store(counts + k, total.to(tl.float32), mask=k < K)
    wait_for_all(arrived, 2, PROGRAMS)
    for first in range(bound(start), bound(K) + 1, PROGRAMS * BLOCK_K):
        before = tl.zeros([1024], tl.int32)
        for other in range(0, first, 1024):
            j = other + tl.arange(0, 1024)
            before += tl.load(totals + j, mask=j < first, other=0, cache_modifier=".cg")
        k = first + tl.arange(0, BLOCK_K)
        total = tl.load(totals + k, mask=k <= K, other=0, cache_modifier=".cg")
        offset = tl.sum(before, 0) + tl.cumsum(total, 0) - total
        tl.store(offsets + k, offset.to(tl.int64), mask=k <= K)
    wait_for_all(arrived, 3, PROGRAMS)


@triton.jit(do_not_specialize=["N", "K", "span"])
def _code_sums_order_kernel(
    keys, table, totals, arrived, offsets, counts, order, sorted_keys, N, K, span,
    PROGRAMS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    mine = table + program * (K + 1)
    first, last = program * span, tl.minimum((program + 1) * span, N)
    for start in range(0, bound(K) + 1, 1024):
        k = start + tl.arange(0, 1024)
        tl.store(mine + k, tl.zeros([1024], tl.int32), mask=k <= K)
    tl.debug_barrier()
    for start in range(bound(first), bound(last), 1024):
        position = start + tl.arange(0, 1024)
        tl.atomic_add(mine + _bucket(keys, position, last, K), 1, mask=position < last, sem="relaxed")
    wait_for_all(arrived, 1, PROGRAMS)
    _scan(table, offsets, totals, counts, arrived, program, K, PROGRAMS, BLOCK_K)
    for start in range(bound(first), bound(last), BLOCK_N):
        i = tl.arange(0, BLOCK_N)
        bucket, inside = _bucket(keys, start + i, last, K), start + i < last
        other = _bucket(keys, start + i, last, K)
        same = bucket[:, None] == other[None, :]  # (BLOCK_N, BLOCK_N)
        earlier = tl.sum((same & (i[None, :] < i[:, None])).to(tl.int32), 1)
        later = tl.sum((same & (i[None, :] > i[:, None])).to(tl.int32), 1)
        rank = tl.load(mine + bucket, mask=inside, other=0, cache_modifier=".cg") + earlier
        position = tl.load(offsets + bucket, mask=inside, other=0, cache_modifier=".cg") + rank
        tl.store(order + position, (start + i).to(tl.int64), mask=inside)  # (BLOCK_N,)
        tl.store(sorted_keys + position, tl.where(bucket == K, -1, bucket), mask=inside)
        tl.debug_barrier()
        tl.store(mine + bucket, rank + 1, mask=inside & (later == 0))
        tl.debug_barrier()


def order_by_code(keys: Tensor, num_codes: int, arrived: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort ``keys (N,)`` int32, codes below K, any other number for none; fewer than 2^31.

    Args:
        keys: The code of each vector.
        num_codes: K.
        arrived: A zero, ``(1,)`` int32, if there is one at hand.

    Returns:
        The sorted keys ``(N,)`` int32, those without a code as -1; where each was ``(N,)`` int64; where the vectors of
        each code begin ``(K + 1,)`` int64, last where those without a code do; how many each has ``(K,)`` float32.
    """
    number, device = keys.numel(), keys.device
    grid = programs(max(1, min(cdiv(number, BLOCK_N), TABLE // (num_codes + 1))))
    words = torch.empty(grid + 1, num_codes + 1, dtype=torch.int32, device=device)
    offsets = torch.empty(num_codes + 1, dtype=torch.int64, device=device)
    counts = torch.empty(num_codes, dtype=torch.float32, device=device)
    order, sorted_keys = torch.empty(number, dtype=torch.int64, device=device), torch.empty_like(keys)
    arrived = torch.zeros(1, dtype=torch.int32, device=device) if arrived is None else arrived
    launch(_code_sums_order_kernel, (grid,))(
        *(keys, words[1:], words[0], arrived, offsets, counts, order, sorted_keys),
        *(number, num_codes, cdiv(number, grid)),
        PROGRAMS=grid,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        num_warps=8,
        enable_fp_fusion=True,
        **cooperative(),
    )
    return sorted_keys, order, offsets, counts
