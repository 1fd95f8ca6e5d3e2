"""The vectors that the scan left open: distances in float64, added in the order that defines the answer.

One program a vector compares the distances of its candidates, or of all codes if more than LIST are candidates. The
smallest distance wins, and of equal ones the lowest code, so the order in which candidates were noted does not matter.
A distance that is not finite never wins; a vector that is not finite gets code -1 without being compared.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dqcore.kernels import common
from dqcore.kernels.common import bound, next_power_of_2, widen
from dqcore.kernels.vectors import locate, starts

LIST = 16


def tree_tile(dim: int) -> dict[str, int]:
    """How a distance is added: at most 4 leaves of LEAF channels, for so many codes that a leaf has 256 elements."""
    whole = max(16, next_power_of_2(dim))
    leaf = max(16, whole // 4)
    return {"BLOCK_K": 64 if common.INTERPRETED else max(1, 256 // leaf), "LEAF": leaf, "WIDTH": whole}


@triton.jit
def _leaf(
    vector, stride_d, code, stride_e, known, FIRST: tl.constexpr, D: tl.constexpr,
    BLOCK_K: tl.constexpr, LEAF: tl.constexpr,
):  # fmt: skip
    """Squared differences of a vector and BLOCK_K codes in the FIRST-th LEAF channels, ``(BLOCK_K, LEAF)``."""
    if FIRST * LEAF >= D:
        return tl.zeros([BLOCK_K, LEAF], tl.float64)
    else:
        d = FIRST * LEAF + tl.arange(0, LEAF)
        value = tl.load(vector + d.to(tl.int64) * stride_d, mask=d < D, other=0.0)  # (LEAF,)
        where = known[:, None] & (d < D)[None, :]
        other = tl.load(code[:, None] + d[None, :].to(tl.int64) * stride_e, mask=where, other=0.0)  # (BLOCK_K, LEAF)
        difference = widen(value).to(tl.float64)[None, :] - widen(other).to(tl.float64)
        return difference * difference


@triton.jit
def _squares(
    vector, stride_d, code, stride_e, known, D: tl.constexpr, BLOCK_K: tl.constexpr, LEAF: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Squared differences of a vector and BLOCK_K codes, ``(BLOCK_K, LEAF)``: the leaves' sum, as a tree of halves.

    The tree is written out, for Triton 3.4 compiles no function that calls itself.
    """
    tl.static_assert(WIDTH <= 4 * LEAF)
    first = _leaf(vector, stride_d, code, stride_e, known, 0, D, BLOCK_K, LEAF)
    if WIDTH == LEAF:
        return first
    elif WIDTH == 2 * LEAF:
        return first + _leaf(vector, stride_d, code, stride_e, known, 1, D, BLOCK_K, LEAF)
    else:
        even = first + _leaf(vector, stride_d, code, stride_e, known, 2, D, BLOCK_K, LEAF)
        odd = _leaf(vector, stride_d, code, stride_e, known, 1, D, BLOCK_K, LEAF)
        return even + (odd + _leaf(vector, stride_d, code, stride_e, known, 3, D, BLOCK_K, LEAF))


@triton.jit
def _fold(values, ROWS: tl.constexpr):
    """Sum of each row, ``(ROWS, WIDTH)`` -> ``(ROWS,)``, as a tree of halves."""
    for _ in tl.static_range(20):  # no block of Triton's is wider than 2**20
        if values.shape[1] > 1:
            values = tl.sum(tl.reshape(values, [ROWS, 2, values.shape[1] // 2]), 1)
    return tl.reshape(values, [ROWS])


@triton.jit(do_not_specialize=["first", "K", "height", "width"])
def _nearest_code_settle_kernel(
    where, codebook, codes, lists, first, K, height, width,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, LIST: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr, LEAF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    maps, strides, cells, rows = where
    start_e, stride_k, stride_e = codebook
    candidates, found, _, numbers, pending = lists
    own, end, jump = tl.program_id(0), tl.load(numbers + SPLITS), tl.num_programs(0)
    for i in range(bound(own), bound(end), bound(jump)):
        row = tl.load(pending + i).to(tl.int64)
        granularity, cell, image, line, column = locate(first + row, True, cells, height, width)
        vector, stride_d = starts(maps, strides, rows, first + row, granularity, image, line, column, G, D, ALIGN)
        count = tl.load(found + row)
        listed = count <= LIST
        end_noted = tl.where(listed, count, 0)
        d = tl.arange(0, WIDTH)
        inside = d < tl.where(listed, 0, D)  # no &: Triton 3.9's interpreter makes a scalar's truth an integer
        value = tl.load(vector + d.to(tl.int64) * stride_d, mask=inside, other=0.0)  # (WIDTH,)
        strange = tl.sum(tl.where(tl.abs(value.to(tl.float32)) < float("inf"), 0, 1), 0)  # how many NaN or infinite
        size = tl.where(listed, count, tl.where(strange == 0, K, 0))
        best = tl.full([], float("inf"), tl.float64)
        code = tl.full([], -1, tl.int32)
        for start in range(0, bound(size), BLOCK_K):
            position = start + tl.arange(0, BLOCK_K)
            known = position < size
            noted = tl.load(candidates + row * LIST + position, mask=position < end_noted, other=0)  # (BLOCK_K,)
            k = tl.where(listed, noted, position)
            other = start_e + k.to(tl.int64) * stride_k
            squares = _squares(vector, stride_d, other, stride_e, known, D, BLOCK_K, LEAF, WIDTH)
            distance = _fold(squares, BLOCK_K)
            distance = tl.where((distance < float("inf")) & known, distance, float("inf"))
            smallest = tl.min(distance, 0)
            lowest = tl.min(tl.where((distance == smallest) & known, k, 2147483647), 0)
            better = (smallest < best) | ((smallest == best) & (lowest < code) & (smallest < float("inf")))
            code = tl.where(better, lowest, code)
            best = tl.minimum(best, smallest)
        tl.store(codes + cell, code.to(tl.int64))
