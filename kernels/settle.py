"""The vectors that a scan left open: distances in float64, added in the order that defines the answer.

First the scores of their open stretches of codes are computed again, and every code that may be nearest is noted, up to
LIST for each vector. Then one program a vector compares the true distances of its candidates, or of all codes if there
are more. Candidates are noted in any order; the smallest distance wins, and of equals the lowest code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels import common
from dqcore.kernels.common import bound
from dqcore.kernels.tokens import locate, starts

LIST = 16


def tree_tile(dim: int) -> dict[str, int]:
    """At most 4 leaves of LEAF channels, 256 float64 elements each."""
    whole = max(16, triton.next_power_of_2(dim))
    leaf = max(16, whole // 4)
    return {"BLOCK_K": 64 if common.INTERPRETED else max(1, 256 // leaf), "LEAF": leaf, "WIDTH": whole}


@triton.jit
def _squares(
    vector, stride_d, code, stride_e, known, FIRST: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr,
    BLOCK_K: tl.constexpr, LEAF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Squares of the differences in every STEP-th block of LEAF channels from FIRST on, added as a tree of halves."""
    if FIRST * LEAF >= D:
        return tl.zeros([BLOCK_K, LEAF], tl.float64)
    elif STEP * LEAF < WIDTH:
        even = _squares(vector, stride_d, code, stride_e, known, FIRST, 2 * STEP, D, BLOCK_K, LEAF, WIDTH)
        odd = _squares(vector, stride_d, code, stride_e, known, FIRST + STEP, 2 * STEP, D, BLOCK_K, LEAF, WIDTH)
        return even + odd
    else:
        d = FIRST * LEAF + tl.arange(0, LEAF)
        value = tl.load(vector + d.to(tl.int64) * stride_d, mask=d < D, other=0.0).to(tl.float32).to(tl.float64)
        where = known[:, None] & (d < D)[None, :]
        other = tl.load(code[:, None] + d[None, :].to(tl.int64) * stride_e, mask=where, other=0.0)
        difference = value[None, :] - other.to(tl.float32).to(tl.float64)
        return difference * difference


@triton.jit
def _fold(values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum of ``(ROWS, WIDTH)`` values over the second dimension, as a tree of halves."""
    if WIDTH == 1:
        return tl.reshape(values, [ROWS])
    else:
        return _fold(tl.sum(tl.reshape(values, [ROWS, 2, WIDTH // 2]), 1), ROWS, WIDTH // 2)


@triton.jit(do_not_specialize=["first", "K", "height", "width"])
def _settle_kernel(
    maps, strides, cells, codebook, codes, pending, numbers, candidates, found, first, K, height, width, stride_k,
    stride_e, G: tl.constexpr, D: tl.constexpr, LIST: tl.constexpr, SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_K: tl.constexpr, LEAF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    end = tl.load(numbers + SPLITS)
    for i in range(bound(tl.program_id(0), INTERPRETED), bound(end, INTERPRETED), bound(tl.num_programs(0), INTERPRETED)):
        row = tl.load(pending + i).to(tl.int64)
        own, cell, image, line, column = locate(first + row, True, cells, height, width)
        vector, stride_d = starts(maps, strides, own, image, line, column, G)
        count = tl.load(found + row)
        listed = count <= LIST
        end_noted = tl.where(listed, count, 0)
        size = tl.where(listed, count, K)
        best = tl.full([], float("inf"), tl.float64)
        code = tl.full([], 0, tl.int32)
        for start in range(0, bound(size, INTERPRETED), BLOCK_K):
            position = start + tl.arange(0, BLOCK_K)
            known = position < size
            noted = tl.load(candidates + row * LIST + position, mask=position < end_noted, other=0)
            k = tl.where(listed, noted, position)
            other = codebook + k.to(tl.int64) * stride_k
            squares = _squares(vector, stride_d, other, stride_e, known, 0, 1, D, BLOCK_K, LEAF, WIDTH)
            distance = _fold(squares, BLOCK_K, LEAF)
            distance = tl.where((distance < float("inf")) & known, distance, float("inf"))
            smallest = tl.min(distance, 0)
            lowest = tl.min(tl.where((distance == smallest) & known, k, 2147483647), 0)
            better = (smallest < best) | ((smallest == best) & (lowest < code) & (smallest < float("inf")))
            code = tl.where(better, lowest, code)
            best = tl.minimum(best, smallest)
        tl.store(codes + cell, code.to(tl.int64))
