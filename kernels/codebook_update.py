"""One launch for all that an EMA codebook learns from a batch: averages, codes, usage, and unused codes revived.

Every program adds up the cluster sizes of the whole codebook, for they are few, and all wait before the first one is
overwritten. Then each program moves the averages of its own codes. If no code is unused, which no host needs to know,
the launch ends here; else it goes on with the steps of ``codebook_draw``. Reference: ``dqcore.ops.codebook_update``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.codebook_draw import (
    BINS,
    choose,
    find_first,
    gather,
    hashed,
    list_largest,
    number_cells,
    rank_listed,
    revive,
)
from dqcore.kernels.common import bound, cdiv, next_power_of_2, on_device
from dqcore.kernels.grid import cooperative, programs, wait_for_all
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import replayed

ROWS = 16  # codes, or drawn vectors, at once
TILE = {"ROWS": ROWS, "BLOCK": 1024, "num_warps": 8, "enable_fp_fusion": True}
THREADS = tl.constexpr(32 * TILE["num_warps"])


@triton.jit
def _moved(old, new, share):
    """The average moved by ``share`` towards ``new``."""
    return tl.where(share < 0.5, old + share * (new - old), new - (new - old) * (1 - share))


@triton.jit
def _sizes(cluster_size, counts, first, share, K, BLOCK: tl.constexpr):
    """The new cluster sizes of a block of codes, 0 beyond the last."""
    k = first + tl.arange(0, BLOCK)
    old = tl.load(cluster_size + k, mask=k < K, other=0.0)
    return _moved(old, tl.load(counts + k, mask=k < K, other=0.0), share)


@triton.jit
def _survey(cluster_size, counts, SHARE, threshold, K, BLOCK: tl.constexpr):
    """Of all codes: number of batches, 0 or 1, and their share; sum of sizes, limit of use, how many below, seed."""
    most = tl.zeros([BLOCK], tl.float32)
    seed = tl.zeros([BLOCK], tl.int64)
    for first in range(0, bound(K), BLOCK):
        k = first + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(counts + k, mask=k < K, other=0.0))
        old = tl.load(cluster_size + k, mask=k < K, other=0.0)
        seed += old.to(tl.int32, bitcast=True).to(tl.int64)
    some = tl.max(most, 0) > 0
    share = tl.where(some, SHARE, 0.0)
    sizes = tl.zeros([BLOCK], tl.float32)
    for first in range(0, bound(K), BLOCK):
        sizes += _sizes(cluster_size, counts, first, share, K, BLOCK)
    total = tl.sum(sizes, 0)
    limit = threshold * tl.div_rn(total, K.to(tl.float32))  # as large as sizes that are all equal
    below = tl.zeros([BLOCK], tl.int32)
    for first in range(0, bound(K), BLOCK):
        known = first + tl.arange(0, BLOCK) < K
        below += (known & (_sizes(cluster_size, counts, first, share, K, BLOCK) < limit)).to(tl.int32)
    return (some.to(tl.int64), share), total, limit, tl.sum(below, 0), tl.sum(seed, 0)


@triton.jit
def _move(codebook, counts, sums, unused, hashes, batch, total, limit, eps, K, program,
          D: tl.constexpr, DRAW: tl.constexpr, PROGRAMS: tl.constexpr,
          ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Move the averages of this program's share of the codebook, and its codes if they are averages."""
    weight, cluster_size, idle, embed_sum = codebook
    batches, share = batch
    start = program * ROWS
    for first in range(bound(start), bound(K), PROGRAMS * ROWS):
        k = first + tl.arange(0, ROWS)
        inside = k < K
        some = tl.zeros([ROWS], tl.float32) + share > 0
        count = tl.load(counts + k, mask=inside, other=0.0)
        own = _moved(tl.load(cluster_size + k, mask=inside, other=1.0), count, share)
        age = tl.load(idle + k, mask=inside, other=0) + batches
        tl.debug_barrier()  # every warp has loaded these rows' sizes, before one stores them
        tl.store(cluster_size + k, own, mask=inside)  # (ROWS,)
        tl.store(idle + k, tl.where(count > 0, 0, age), mask=inside)  # (ROWS,)
        size = (own + eps) / (total + K * eps) * total
        code_hash = tl.zeros([ROWS], tl.int64)
        for channel in range(0, D, BLOCK_D):
            d = channel + tl.arange(0, BLOCK_D)
            known = inside[:, None] & (d < D)[None, :]
            at = k.to(tl.int64)[:, None] * D + d[None, :]
            if embed_sum is not None:
                old = tl.load(embed_sum + at, mask=known, other=0.0)
                new = _moved(old, tl.load(sums + at, mask=known, other=0.0), share)
                code = tl.div_rn(new, tl.broadcast_to(size[:, None], new.shape))
                if DRAW:
                    code = tl.where(some[:, None], code, tl.load(weight + at, mask=known, other=0.0))
                    code_hash += hashed(code, d, D)
                if ROWS * BLOCK_D < THREADS:
                    tl.debug_barrier()  # here, too
                tl.store(embed_sum + at, new, mask=known)  # (ROWS, BLOCK_D), as is the next
                tl.store(weight + at, code, mask=known & some[:, None])
            elif DRAW:
                code_hash += hashed(tl.load(weight + at, mask=known, other=0.0), d, D)
        if DRAW:
            tl.store(unused + k, (own < limit).to(tl.int64), mask=inside)  # (ROWS,), as is the next
            tl.store(hashes + k, code_hash, mask=inside)


@triton.jit(do_not_specialize=["share", "eps", "threshold", "N", "K", "number", "height", "width"])
def _codebook_update_kernel(
    codebook, statistics, source, codes, known, scratch, share, eps, threshold, N, K, number, height, width,
    D: tl.constexpr, G: tl.constexpr, PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    arrived, longs, floats, doubles = scratch
    counts, sums = statistics
    batch, total, limit, below, seed = _survey(codebook[1], counts, share, threshold, K, BLOCK)
    wait_for_all(arrived, 1, PROGRAMS)
    if source is None:
        _move(codebook, counts, sums, arrived, arrived, batch, total, limit, eps, K, program,
              D, False, PROGRAMS, ROWS, BLOCK_D)  # fmt: skip
    else:
        length, fresh, histogram = arrived + 1, arrived + 2, arrived + 3
        unused, code_hashes, hashes, drawn = longs, longs + K, longs + 2 * K, longs + 3 * K
        first_of, chosen, keys, listed = longs + 4 * K, longs + 5 * K, longs + 6 * K, longs + 6 * K + N
        distance, rows, squares, totals = floats, floats + K, doubles, doubles + K
        _move(codebook, counts, sums, unused, code_hashes, batch, total, limit, eps, K, program,
              D, True, PROGRAMS, ROWS, BLOCK_D)  # fmt: skip
        if below > 0:
            number_cells(source[2], codes, known, keys, histogram, seed, 0, N, height, width, program,
                         G, PROGRAMS, BLOCK)  # fmt: skip
            wait_for_all(arrived, 2, PROGRAMS)
            list_largest(keys, listed, histogram, length, number, N, program, PROGRAMS, BLOCK)
            wait_for_all(arrived, 3, PROGRAMS)
            many = tl.load(length, cache_modifier=".cg")
            rank_listed(keys, listed, drawn, many, number, program, PROGRAMS, ROWS)
            wait_for_all(arrived, 4, PROGRAMS)
            many = tl.minimum(many, number)
            gather(source, drawn, rows, distance, hashes, totals, squares, many, height, width, program,
                   G, D, PROGRAMS, ROWS, BLOCK_D)  # fmt: skip
            wait_for_all(arrived, 5, PROGRAMS)
            find_first(hashes, code_hashes, unused, first_of, many, K, program, PROGRAMS, ROWS)
            wait_for_all(arrived, 6, PROGRAMS)
            if program == 0:
                choose(first_of, distance, totals, squares, chosen, fresh, many, D, ROWS, BLOCK, BLOCK_D)
            wait_for_all(arrived, 7, PROGRAMS)
            revive(codebook, chosen, rows, unused, fresh, K, program, D, PROGRAMS, ROWS, BLOCK_D)


@replayed
def codebook_update_fwd(
    codebook: tuple[Tensor, Tensor, Tensor, Tensor | None],
    statistics: tuple[Tensor, Tensor],
    maps: Sequence[Tensor],
    grain: Tensor | None,
    codes: Tensor | None,
    error: Tensor,
    setting: tuple[float, float, float | None],
    keys: Tensor | None = None,
) -> None:
    """Update ``codebook``, a tuple of weight ``(K + 1, D)``, cluster size, idle and embed sum or None; contiguous.

    Args:
        codebook: See :class:`dqcore.codebook.EMACodebook`.
        statistics: Counts ``(K,)`` and sums ``(K, D)``, float32.
        maps: What was looked up, coarse to fine.
        grain: ``(B, h, w)`` int64; None for one granularity.
        codes: ``(B, H, W)`` int64, -1 where no vector counts; None where there are ``keys``.
        error: ``(B, H, W)`` float32, as ``dynamic_lookup`` returns it.
        setting: Decay; eps; the threshold of ``RandomRestart``, or None.
        keys: Random numbers of the vectors ``(B, H, W)`` int64, -1 for none; None to find them here.
    """
    (_, sums), (decay, eps, threshold) = statistics, setting
    (size, dim), cells, device = sums.shape, error.numel(), sums.device
    block = min(128, next_power_of_2(dim))
    draw = threshold is not None and cells > 0
    number = min(size, cells)
    work = max(cdiv(size, ROWS), cdiv(cells, TILE["BLOCK"]) if draw else 0)
    ints = torch.zeros(BINS.value + 3 if draw else 1, dtype=torch.int32, device=device)
    scratch: tuple[Tensor | None, ...] = (ints, None, None, None)
    source = None
    if draw:
        longs = torch.empty(6 * size + 2 * cells, dtype=torch.int64, device=device)
        floats = torch.empty(size + number * dim, dtype=torch.float32, device=device)
        doubles = torch.empty(size + cdiv(number, ROWS) * dim, dtype=torch.float64, device=device)
        scratch = (ints, longs, floats, doubles)
        regions = error if grain is None else grain  # read by nobody; Triton 3.6 compares no tuple that has a None
        strides = tuple(values.stride() for values in maps)
        source = (tuple(maps), strides, regions.contiguous(), error.contiguous())
    with on_device(sums):
        grid = programs(work)
        launch(_codebook_update_kernel, (grid,))(
            *(codebook, statistics, source, *_numbers(codes, keys, draw), scratch),
            *(1 - decay, eps, threshold or 0.0, cells, size, number, *error.shape[1:]),
            D=dim,
            G=len(maps),
            PROGRAMS=grid,
            BLOCK_D=block,
            **TILE,
            maxnreg=255,  # one block a multiprocessor: without a limit of ours ptxas may spill to fit two
            **cooperative(),
        )


def _numbers(codes: Tensor | None, keys: Tensor | None, draw: bool) -> list[Tensor | None]:
    """What decides who is drawn, as the kernel takes it."""
    return [values.contiguous() if values is not None and draw else None for values in (codes, keys)]
