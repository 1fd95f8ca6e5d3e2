"""Exact nearest code: a fast pass that proves most of its answers, and a float64 pass over the rest.

Pass A. One program takes BLOCK_N vectors past all codes, keeping in registers the smallest and second smallest score
``||c'||^2 - 2 x'.c'`` and the index of the smallest. For float32, x' and c' are vector and code less the mean of some
codes, which moves no argmin, and products are IEEE float32. Two float16 or two bfloat16 are taken as they are; their
products are exact, on tensor cores. With unit roundoff u = 2^-24 and ``C = max ||c'||`` a score is off by at most

    E = g (2 ||x'|| C + C^2) + 2^-47 (||x'|| + C)^2 + 2^-100,
    g = 1.01 (D + 8) u for float32, 1.01 (3 (D + 16) + 8) u for half precision.

float32: D u for any order of summation, the rest for centring, ``||c'||^2`` and the last addition. Half: a tensor core
adds a block of 8 or more products to its running sum, each aligned to the largest and cut off below 24 bits; so it
loses at most 2u of the largest for each of 10 terms, 2.5 u a product. The second term covers the rounding of the
float64 distance that defines the answer, the third underflow. Norms are rounded up, by 1e-3 and, for squares that
underflow, 1e-16. A vector is settled if its second score exceeds its first by more than 2E and nothing can overflow.

Pass B writes the others: one program looks through SPAN vectors and scans all codes for those pass A left, comparing
the distance that defines the answer, in float64 and in the order of ``dqcore.ops.nearest_code.squared_distance``. Which
vectors pass A leaves changes the time taken, never the result. Reference: ``dqcore.ops.nearest_code``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common
from dqcore.kernels.common import bound, on_device, place

SPAN = 16
UNIT = 2.0**-24


def tile(products: str, dim: int) -> dict[str, int]:
    """Tile of pass A, by what its products are: IEEE float32 ("ieee"), "tf32" or "half".

    IEEE products hold a whole step of D in registers, hence short steps. None takes more than 50 KB of shared memory,
    so that one choice suits every GPU. Interpreted, an operation costs the same whatever its size.
    """
    codes, step, stages = {"ieee": (32, 16, 1), "tf32": (64, 32, 3), "half": (64, 64, 3)}[products]
    whole = max(16, triton.next_power_of_2(dim))
    return {
        "BLOCK_N": 64,
        "BLOCK_K": codes,
        "BLOCK_D": whole if common.INTERPRETED else min(step, whole),
        "num_warps": 8,
        "num_stages": stages,
    }


def tree_tile(dim: int) -> dict[str, int]:
    """Tile of pass B: at most 4 leaves of LEAF channels, 256 float64 elements each."""
    whole = max(16, triton.next_power_of_2(dim))
    leaf = max(16, whole // 4)
    return {"BLOCK_K": 64 if common.INTERPRETED else max(1, 256 // leaf), "LEAF": leaf, "WIDTH": whole}


class Codes(NamedTuple):
    """A codebook prepared for search."""

    values: Tensor  # (K, D)
    centre: Tensor | None  # (D,) float32, taken off vectors and codes; None where both are half precision
    square: Tensor  # (K,) float32, ||c'||^2
    largest: Tensor  # () float32, the largest of them; NaN if any is


@triton.jit
def _square_kernel(
    codebook, centre, square, K, stride_k, stride_d, D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K], tl.float64)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        where = (k < K)[:, None] & (d < D)[None, :]
        value = tl.load(codebook + k[:, None] * stride_k + d[None, :] * stride_d, mask=where, other=0.0)
        value = value.to(tl.float32).to(tl.float64)
        if centre is not None:
            value -= tl.load(centre + d, mask=d < D, other=0.0).to(tl.float64)[None, :]
        total += tl.sum(tl.where(where, value * value, 0.0), 1)
    tl.store(square + k, total.to(tl.float32), mask=k < K)


@triton.jit
def _load(start, stride, offset, mask, centre, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """A block ``(BLOCK_D, rows)`` from channel ``offset`` on of the rows that begin at ``start``, less the centre."""
    d = offset + tl.arange(0, BLOCK_D)
    where = (d < D)[:, None] & mask[None, :]
    block = tl.load(start[None, :] + d[:, None].to(tl.int64) * stride, mask=where, other=0.0)
    if centre is not None:
        block = block.to(tl.float32) - tl.load(centre + d, mask=d < D, other=0.0)[:, None]
        block = tl.where(where, block, 0.0)
    elif UPCAST:
        block = block.to(tl.float32)
    return block


@triton.jit(do_not_specialize=["spread", "side"])
def _nearest_code_kernel(
    x,
    codebook,
    centre,
    square,
    largest,
    codes,
    regions,
    count,
    N,
    K,
    height,
    width,
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    stride_k,
    stride_e,
    spread,  # side of the block of `codes` that a cell of x fills; its first cell is written
    side,
    D: tl.constexpr,
    ERROR: tl.constexpr,  # g above; None takes the smallest score unproven
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    if count is not None:
        N = tl.load(count) * side * side
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    if first >= N:
        return
    token = first + tl.arange(0, BLOCK_N)
    inside = token < N
    image, row, column = place(tl.where(inside, token, 0), regions, height, width, side)
    start = x + image * stride_b + row * stride_h + column * stride_w
    norm = tl.zeros([BLOCK_N], tl.float32)
    for d in range(0, D, BLOCK_D):
        vector = _load(start, stride_d, d, inside, centre, D, BLOCK_D, True)
        norm += tl.sum(vector * vector, 0)

    best = tl.full([BLOCK_N], float("inf"), tl.float32)
    second = tl.full([BLOCK_N], float("inf"), tl.float32)
    code = tl.zeros([BLOCK_N], tl.int32)
    if D <= BLOCK_D:
        vector = _load(start, stride_d, 0, inside, centre, D, BLOCK_D, UPCAST)
    for first_code in range(0, bound(K, INTERPRETED), BLOCK_K):
        k = first_code + tl.arange(0, BLOCK_K)
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for d in range(0, D, BLOCK_D):
            if D > BLOCK_D:
                vector = _load(start, stride_d, d, inside, centre, D, BLOCK_D, UPCAST)
            values = _load(codebook + k.to(tl.int64) * stride_k, stride_e, d, k < K, centre, D, BLOCK_D, UPCAST)
            product = tl.dot(tl.trans(vector), values, product, input_precision=PRECISION)
        score = tl.load(square + k, mask=k < K, other=float("inf"))[None, :] - 2 * product
        if INTERPRETED:
            score = tl.where(score == score, score, float("inf"))  # numpy's argmin raises if all are NaN
        smallest, where = tl.min(score, 1, return_indices=True)
        others = tl.where(tl.arange(0, BLOCK_K)[None, :] == where[:, None], float("inf"), score)
        second = tl.minimum(tl.maximum(best, smallest), tl.minimum(second, tl.min(others, 1)))
        code = tl.where(smallest < best, first_code + where, code)
        best = tl.minimum(best, smallest)

    if ERROR is not None:
        norm = tl.sqrt(norm) * 1.001 + 1e-16
        radius = tl.sqrt(tl.load(largest)) * 1.001 + 1e-16
        size = (2 * norm + radius) * radius
        error = ERROR * size + 7.2e-15 * (norm + radius) * (norm + radius) + 8e-31  # 2^-47, 2^-100
        settled = (second - best > 2 * error) & (size < 1e37)
        code = tl.where(settled, code, -1)
    out = (image * (height * spread) + row * spread) * (width * spread) + column * spread
    tl.store(codes + out, code.to(tl.int64), mask=inside)


@triton.jit
def _squares(
    vector,
    stride_d,
    code,
    stride_e,
    known,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LEAF: tl.constexpr,
    WIDTH: tl.constexpr,
):
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


@triton.jit(do_not_specialize=["spread", "side"])
def _settle_kernel(
    x,
    codebook,
    codes,
    regions,
    count,
    N,
    K,
    height,
    width,
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    stride_k,
    stride_e,
    spread,
    side,
    D: tl.constexpr,
    INTERPRETED: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LEAF: tl.constexpr,
    WIDTH: tl.constexpr,
):
    if count is not None:
        N = tl.load(count) * side * side
    first = tl.program_id(0).to(tl.int64) * SPAN
    if first >= N:
        return
    for i in range(0, SPAN):
        token = first + i
        image, row, column = place(tl.minimum(token, N - 1), regions, height, width, side)
        out = (image * (height * spread) + row * spread) * (width * spread) + column * spread
        if tl.load(codes + out, mask=token < N, other=0) < 0:
            vector = x + image * stride_b + row * stride_h + column * stride_w
            best = tl.full([], float("inf"), tl.float64)
            code = tl.full([], 0, tl.int32)
            for first_code in range(0, bound(K, INTERPRETED), BLOCK_K):
                k = first_code + tl.arange(0, BLOCK_K)
                start = codebook + k.to(tl.int64) * stride_k
                squares = _squares(vector, stride_d, start, stride_e, k < K, 0, 1, D, BLOCK_K, LEAF, WIDTH)
                distance = _fold(squares, BLOCK_K, LEAF)
                distance = tl.where((distance < float("inf")) & (k < K), distance, float("inf"))
                smallest, where = tl.min(distance, 0, return_indices=True)
                code = tl.where(smallest < best, first_code + where, code)
                best = tl.minimum(best, smallest)
            tl.store(codes + out, code.to(tl.int64))


def prepare(x: Tensor, codebook: Tensor) -> Codes:
    """What pass A needs to know of a codebook beside its values: 4 bytes a code."""
    size, dim = codebook.shape
    half = x.dtype == codebook.dtype and x.dtype != torch.float32
    centre = None if half else codebook[:: triton.cdiv(size, 512)].mean(0, dtype=torch.float32)
    square = torch.empty(size, dtype=torch.float32, device=codebook.device)
    _square_kernel[(triton.cdiv(size, 16),)](
        codebook, centre, square, size, *codebook.stride(), D=dim, BLOCK_K=16, BLOCK_D=64, num_warps=4
    )
    return Codes(codebook, centre, square, square.max())


def search(
    x: Tensor,
    prepared: Codes,
    precision: str,
    codes: Tensor,
    *,
    regions: Tensor | None = None,
    count: Tensor | None = None,
    side: int = 1,
) -> None:
    """Write the nearest code of each cell of ``x (B, D, H, W)`` to the first cell of its block of ``codes``.

    With ``regions`` only of the cells of the first ``count`` regions that it lists, ``side x side`` each; ``codes`` is
    ``(B, H s, W s)`` for a whole number s.
    """
    batch, dim, height, width = x.shape
    tokens = batch * height * width
    half = prepared.centre is None
    values = prepared.values
    error = 1.01 * (3 * (dim + 16) + 8 if half else dim + 8) * UNIT
    shape = (tokens, values.shape[0], height, width, *x.stride(), *values.stride())
    shape += (codes.shape[-1] // width, side, dim)
    products = "half" if half else "ieee" if precision == "exact" else "tf32"
    first = tile(products, dim)
    _nearest_code_kernel[(triton.cdiv(tokens, first["BLOCK_N"]),)](
        *(x, values, prepared.centre, prepared.square, prepared.largest, codes, regions, count),
        *shape,
        ERROR=error if precision == "exact" else None,
        PRECISION="tf32" if products == "tf32" else "ieee",
        UPCAST=not half or common.INTERPRETED,
        INTERPRETED=common.INTERPRETED,
        **first,
    )
    if precision == "exact":
        _settle_kernel[(triton.cdiv(tokens, SPAN),)](
            *(x, values, codes, regions, count),
            *shape,
            INTERPRETED=common.INTERPRETED,
            SPAN=SPAN,
            **tree_tile(dim),
            num_warps=4,
            enable_fp_fusion=False,
        )


def nearest_code_fwd(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """``x (N, D)`` or ``(B, D, H, W)``, ``codebook (K, D)`` -> ``(N,)`` or ``(B, H, W)`` int64."""
    shape = x.shape[:1] if x.dim() == 2 else (x.shape[0], *x.shape[2:])
    codes = torch.empty(shape, dtype=torch.int64, device=x.device)
    if codes.numel() > 0:
        cells = x if x.dim() == 4 else x.T[None, :, None]  # the vectors as one line of an image
        with on_device(x):
            search(cells, prepare(x, codebook), precision, codes)
    return codes
