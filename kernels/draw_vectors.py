"""Some vectors of a batch that comes in parts, each with the same chance, in one launch a part.

The steps are those by which ``codebook_update`` draws from a whole batch, and so are the vectors: every vector has a
random number that its place decides, and those with the largest are kept. What earlier parts gave counts as more cells
behind those of the maps. Reference: ``dqcore.ops.reference.draw_vectors``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.codebook_draw import BINS, list_largest, number_cells, place, rank_listed
from dqcore.kernels.common import bound, cdiv, next_power_of_2, on_device, widen
from dqcore.kernels.grid import cooperative, programs, wait_for_all
from dqcore.kernels.launch import launch
from dqcore.kernels.replay import replayed

TILE = {"ROWS": 16, "BLOCK": 1024, "num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _write(source, pool, known, drawn, out, N, many, number, height, width, program,
           G: tl.constexpr, D: tl.constexpr, PROGRAMS: tl.constexpr,
           ROWS: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Random numbers, vectors and distances of the ``many`` cells that were drawn, and fillers up to ``number``."""
    keys, vectors, distance = out
    own = program * ROWS
    for first in range(bound(own), bound(number), PROGRAMS * ROWS):
        i = first + tl.arange(0, ROWS)
        cell = tl.load(drawn + i, mask=i < many, other=0, cache_modifier=".cg")
        here, earlier = (i < many) & (cell < N), (i < many) & (cell >= N)
        start, stride, cells = place(source, tl.where(here, cell, 0), here, height, width, G, D)
        far = tl.load(source[3] + cell, mask=here, other=0.0) * cells.to(tl.float32)
        if pool is not None:
            far += tl.load(pool[2] + (cell - N), mask=earlier, other=0.0)
        key = tl.load(known + cell, mask=i < many, other=-1, cache_modifier=".cg")
        tl.store(keys + i, key, mask=i < number)  # (ROWS,), as is the next
        tl.store(distance + i, far, mask=i < number)
        for channel in range(0, D, BLOCK_D):
            d = channel + tl.arange(0, BLOCK_D)
            inside = (d < D)[None, :]
            value = tl.load(start[:, None] + d[None, :] * stride[:, None], mask=here[:, None] & inside, other=0.0)
            value = widen(value)  # (ROWS, BLOCK_D)
            if pool is not None:
                row = pool[1] + (cell - N)[:, None] * D + d[None, :]
                value = tl.where(earlier[:, None], tl.load(row, mask=earlier[:, None] & inside, other=0.0), value)
            to = vectors + i.to(tl.int64)[:, None] * D + d[None, :]
            tl.store(to, value, mask=(i < number)[:, None] & inside)  # (ROWS, BLOCK_D)


@triton.jit(do_not_specialize=["before", "N", "P", "number", "height", "width"])
def _draw_vectors_kernel(
    source, codes, random, pool, scratch, out, before, N, P, number, height, width,
    D: tl.constexpr, G: tl.constexpr, PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Draw ``number`` of N cells and P vectors that were drawn before.

    Args:
        source: Maps, their strides, grain map and errors.
        codes: Negative where a cell is left out.
        random: The seed, and how many more cells come before these or None.
        pool: Random numbers, vectors and distances that earlier parts gave; None for none.
        scratch: Zeros int32, one each for arrivals and for the length of the list, then the histogram; and int64.
        out: Random numbers, vectors and distances.
        before: Cells that come before these.
        N: Cells of this part.
        P: Vectors of the pool.
        number: How many to draw.
        height: Of the finest grid.
        width: Of the finest grid.
        D: Channels.
        G: Granularities.
        PROGRAMS: Programs of the launch.
        ROWS: Drawn vectors at once.
        BLOCK: Cells at once.
        BLOCK_D: Channels at once.
    """
    program = tl.program_id(0)
    arrived, longs = scratch
    length, histogram = arrived + 1, arrived + 2
    cells = N.to(tl.int64) + P
    keys, listed, drawn = longs, longs + cells, longs + 2 * cells
    seed, more = tl.load(random[0]), before + tl.zeros([], tl.int64)
    if random[1] is not None:
        more += tl.load(random[1])
    number_cells(source[2], codes, None, keys, histogram, seed, more, N, height, width, program, G, PROGRAMS, BLOCK)
    if pool is not None:
        number_cells(source[2], None, pool[0], keys + N, histogram, seed, 0, P, 1, 1, program, 1, PROGRAMS, BLOCK)
    wait_for_all(arrived, 1, PROGRAMS)
    list_largest(keys, listed, histogram, length, number, cells, program, PROGRAMS, BLOCK)
    wait_for_all(arrived, 2, PROGRAMS)
    many = tl.load(length, cache_modifier=".cg")
    rank_listed(keys, listed, drawn, many, number, program, PROGRAMS, ROWS)
    wait_for_all(arrived, 3, PROGRAMS)
    many = tl.minimum(many, number)
    _write(source, pool, keys, drawn, out, N, many, number, height, width, program, G, D, PROGRAMS, ROWS, BLOCK_D)


@replayed
def draw_vectors_fwd(
    maps: Sequence[Tensor],
    grain: Tensor,
    codes: Tensor,
    error: Tensor,
    seed: Tensor,
    earlier: Tensor | None,
    pool: Sequence[Tensor],
    before: int,
    number: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dqcore.ops.draw_vectors``: random numbers ``(n,)`` int64, vectors ``(n, D)``, distances ``(n,)`` float32."""
    cells, dim, device = codes.numel(), maps[-1].shape[1], codes.device
    known = len(pool[0]) if pool else 0
    number = min(number, cells + known)
    keys = torch.empty(number, dtype=torch.int64, device=device)
    vectors = torch.empty(number, dim, dtype=torch.float32, device=device)
    distance = torch.empty(number, dtype=torch.float32, device=device)
    if number == 0:
        return keys, vectors, distance
    ints = torch.zeros(BINS.value + 2, dtype=torch.int32, device=device)
    longs = torch.empty(2 * (cells + known) + number, dtype=torch.int64, device=device)
    source = (tuple(maps), tuple(values.stride() for values in maps), grain.contiguous(), error.contiguous())
    work = max(cdiv(number, TILE["ROWS"]), cdiv(cells + known, TILE["BLOCK"]))
    with on_device(codes):
        grid = programs(work)
        launch(_draw_vectors_kernel, (grid,))(
            *(source, codes.contiguous(), (seed, earlier), tuple(pool) if known else None),
            *((ints, longs), (keys, vectors, distance), before, cells, known, number, *codes.shape[1:]),
            D=dim,
            G=len(maps),
            PROGRAMS=grid,
            BLOCK_D=min(128, next_power_of_2(dim)),
            **TILE,
            maxnreg=255,  # one block a multiprocessor: without a limit of ours ptxas may spill to fit two
            **cooperative(),
        )
    return keys, vectors, distance
