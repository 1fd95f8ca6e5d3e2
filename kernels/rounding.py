"""Codes and vectors as the scan of ``nearest_code`` reads them, and how far that is from what was given.

Float32 is centred on the mean m of some codes, which moves no argmin, scaled by a power of two, which rounds nothing,
and rounded to float16: once, or for few channels (SPLIT) into a sum of two, so that one product of four times the depth
has 22 bits. Two float16 or two bfloat16 are taken as they are (m = 0): their products are exact. With
``Y = 2^a (x - m)``, ``Q = 2^b (e - m)`` and p, q the rounded vectors, the scan computes

    t_k = 2^a h_k - p.q_k,    h_k = 2^(b-1) ||e_k - m||^2,

which is ``2^(a+b-1) ||x - e_k||^2`` less a constant of the vector. As ``Y.Q - p.q = (Y - p).Q + p.(Q - q)``, and a sum
of W products that begins with 2^a h loses ACCUMULATION (W + 16) of its size on a tensor core, t_k is off by at most

    ||Y - p|| max ||Q|| + ||p|| max ||Q - q||
    + ACCUMULATION (W + 16) (||p|| max ||q|| + 2^a max h) + 2^-24 2^a max h
    + 2^-48 (2^(b-a) ||Y||^2 + 2 ||Y|| max ||Q|| + 2^(a-b) max ||Q||^2)    (the answer's float64 distance rounds, too)

and what underflows; ``||Y - p||`` counts the rounding of x - m, too. The margin is twice that, for two scores that are
compared; infinite where something might overflow. Norms are rounded up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels import common
from dqcore.kernels.common import bound
from dqcore.kernels.tokens import Tokens, locate, starts

#: Loss of a product and its sum in a tensor core, of the norms' product, by channel: a core adds a block of 8 or more
#: products to its running sum, each aligned to the largest and cut off below 24 bits, so it loses at most 2^-23 of the
#: largest for each of its terms, 2.5 units of 2^-24 a product. Assumed; no GPU has confirmed it yet.
ACCUMULATION = 3 * 2.0**-24
PADDING = 256  # codes; every block of a scan divides it
MEASURE = {"BLOCK_K": 64, "BLOCK_D": 64, "num_warps": 4}
ROWS = 64  # vectors that one program rounds
SPLIT_DIM = 16  # up to here the comparison of scores costs more than a product of four times the depth


class Codes(NamedTuple):
    """A codebook prepared for the scan; K is padded to whole blocks of codes that win nothing."""

    values: Tensor  # (K', W) float16 or bfloat16, -q
    squares: Tensor  # (K',) float32, h; infinite where padded
    sizes: Tensor  # (5,) float32: the largest ||Q||, ||Q - q||, ||q||, h, and `largest`
    centre: Tensor | None  # (D,) float32; None where products are exact
    largest: Tensor | None  # (1,) float32, at least half of the largest |e - m|
    split: bool


@triton.jit
def _scale_to(value, POWER: tl.constexpr):
    """The power of two that brings ``value``, within 2^-100 and 2^100, between 2^POWER and twice that; exactly."""
    value = tl.minimum(tl.maximum(value, 7.9e-31), 1.2e30)
    exponent = value.to(tl.int32, bitcast=True) >> 23
    return ((254 + POWER - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _code_scale(largest):
    """2^b, by which no channel of a centred code reaches 2^15."""
    return _scale_to(tl.load(largest), 13)


@triton.jit
def _raise(maximum, values):
    """Raise a non-negative maximum in memory; NaN, whose bits exceed those of all numbers, stays."""
    bits = (values * 1.000001).to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(maximum, tl.max(bits, 0))


@triton.jit(do_not_specialize=["K"])
def _measure_codes_kernel(
    codebook, centre, largest, K, stride_k, stride_d, D: tl.constexpr, SAMPLES: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The largest channel of all codes, and the mean of every so many of them: a block of channels a program."""
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    for channel in range(0, D, BLOCK_D):
        d = channel + tl.arange(0, BLOCK_D)
        where = (k < K)[:, None] & (d < D)[None, :]
        value = tl.load(codebook + k[:, None] * stride_k + d[None, :] * stride_d, mask=where, other=0.0).to(tl.float32)
        _raise(largest, tl.reshape(tl.abs(value), [BLOCK_K * BLOCK_D]))
    step = tl.cdiv(K, SAMPLES)
    number = tl.cdiv(K, step)
    own, jump = tl.program_id(0) * BLOCK_D, tl.num_programs(0) * BLOCK_D
    for channel in range(bound(own, INTERPRETED), D, bound(jump, INTERPRETED)):
        d = channel + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], tl.float32)
        for first in range(0, SAMPLES, BLOCK_K):
            sample = first + tl.arange(0, BLOCK_K)
            start = codebook + (sample.to(tl.int64) * step * stride_k)[:, None] + d[None, :] * stride_d
            value = tl.load(start, mask=(sample < number)[:, None] & (d < D)[None, :], other=0.0)
            total += tl.sum(value.to(tl.float32), 0)
        tl.store(centre + d, total / number, mask=d < D)


@triton.jit(do_not_specialize=["K"])
def _round_codes_kernel(
    codebook, centre, largest, values, squares, sizes, K, stride_k, stride_d,
    D: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, WHOLE)
    where = (k < K)[:, None] & (d < D)[None, :]
    value = tl.load(codebook + k[:, None] * stride_k + d[None, :] * stride_d, mask=where, other=0.0)
    value = value.to(tl.float32).to(tl.float64)
    scale = 1.0
    if centre is not None:
        scale = _code_scale(largest)
        value = (value - tl.load(centre + d, mask=d < D, other=0.0).to(tl.float64)[None, :]) * scale.to(tl.float64)
        value = tl.where(where, value, 0.0)
    square = tl.sum(value * value, 1)
    high = value.to(tl.float32).to(values.dtype.element_ty)
    rest = value - high.to(tl.float32).to(tl.float64)
    out = values + k[:, None] * (4 * WHOLE if SPLIT else WHOLE) + d[None, :]
    high = (-high.to(tl.float32)).to(values.dtype.element_ty)
    tl.store(out, high)
    if SPLIT:
        low = rest.to(tl.float32).to(tl.float16)
        rest -= low.to(tl.float32).to(tl.float64)
        tl.store(out + WHOLE, high)
        tl.store(out + 2 * WHOLE, -low)
        tl.store(out + 3 * WHOLE, -low)
    miss = tl.sqrt(tl.sum(rest * rest, 1))
    norm = tl.sqrt(square)
    half = square / (2.0 * scale)
    tl.store(squares + k, tl.where(k < K, half, float("inf")).to(tl.float32))
    _raise(sizes, norm)
    _raise(sizes + 1, miss)
    _raise(sizes + 2, (norm + miss) * (1.4142136 if SPLIT else 1.0))
    _raise(sizes + 3, half)


@triton.jit
def _centred(start, stride, inside, centre, channel, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A float32 block ``(channels, vectors)``: lanes run along vectors, which lie side by side in memory."""
    d = channel + tl.arange(0, BLOCK_D)
    where = (d < D)[:, None] & inside[None, :]
    value = tl.load(start[None, :] + d[:, None] * stride[None, :], mask=where, other=0.0).to(tl.float32)
    if centre is not None:
        value = tl.where(where, value - tl.load(centre + d, mask=d < D, other=0.0)[:, None], 0.0)
    return value


@triton.jit(do_not_specialize=["first", "N", "height", "width"])
def _round_vectors_kernel(
    maps, strides, cells, count, centre, largest, sizes, vectors, scales, margins, first, N, height, width, ERROR,
    G: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    if count is not None:
        N = tl.minimum(N, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    if first + begin >= N:
        return
    row = begin + tl.arange(0, BLOCK_N)
    inside = first + row < N
    own, _, image, line, column = locate(first + row, inside, cells, height, width)
    start, stride = starts(maps, strides, own, image, line, column, G)
    scale = tl.full([BLOCK_N], 1.0, tl.float32)
    ratio = scale
    if centre is not None:
        largest_here = tl.zeros([BLOCK_N], tl.float32)
        for channel in range(0, D, BLOCK_D):
            value = _centred(start, stride, inside, centre, channel, D, BLOCK_D)
            largest_here = tl.maximum(largest_here, tl.max(tl.abs(value), 0))
        code_scale = _code_scale(largest)
        scale = tl.minimum(_scale_to(largest_here, 14), code_scale * 256)
        ratio = scale / code_scale
    square = tl.zeros([BLOCK_N], tl.float32)
    lost = tl.zeros([BLOCK_N], tl.float32)
    for channel in range(0, WHOLE, BLOCK_D):
        value = _centred(start, stride, inside, centre, channel, D, BLOCK_D) * scale[None, :]
        high = value.to(vectors.dtype.element_ty)
        rest = value - high.to(tl.float32)
        out = vectors + row[:, None] * (4 * WHOLE if SPLIT else WHOLE) + (channel + tl.arange(0, BLOCK_D))[None, :]
        high = tl.trans(high)
        tl.store(out, high, mask=inside[:, None])
        if SPLIT:
            low = rest.to(tl.float16)
            rest -= low.to(tl.float32)
            low = tl.trans(low)
            tl.store(out + 2 * WHOLE, high, mask=inside[:, None])
            tl.store(out + WHOLE, low, mask=inside[:, None])
            tl.store(out + 3 * WHOLE, low, mask=inside[:, None])
        square += tl.sum(value * value, 0)
        lost += tl.sum(rest * rest, 0)
    norm = tl.sqrt(square) * 1.001 + 1e-16
    tiny = 1e-36 * scale + 1e-18  # what may underflow, 2^-126 a channel, and be flushed to zero
    miss = tl.sqrt(lost) * 1.001 + 6e-8 * norm + tiny  # centring rounds by 2^-24
    code_norm, code_miss = tl.load(sizes), tl.load(sizes + 1)
    size = (norm + miss) * (1.4142136 if SPLIT else 1.0) * tl.load(sizes + 2)
    top = scale * tl.load(sizes + 3)
    error = ERROR * (size + top) + (6.1e-8 * top + 1e-20) + tiny  # the running sum begins with 2^a h
    if centre is not None:
        error += miss * code_norm + (norm + miss) * code_miss
    # the float64 distance that defines the answer is rounded, too: 2^-48 of (||x - m|| + ||e - m||)^2
    error += 3.6e-15 * (norm * norm / ratio + 2 * norm * code_norm + code_norm * code_norm * ratio)
    sure = (size < 1e37) & (top < 1e37)
    tl.store(scales + row, scale, mask=inside)
    tl.store(margins + row, tl.where(sure, 2.01 * error, float("inf")), mask=inside)


def round_codes(codebook: Tensor, exact: bool) -> Codes:
    """Prepare ``codebook (K, D)``; ``exact`` where it and the vectors are of one half precision."""
    size, dim = codebook.shape
    split = not exact and dim <= SPLIT_DIM
    whole = max(4 if split else 16, triton.next_power_of_2(dim))
    room = triton.cdiv(size, PADDING) * PADDING
    kind = codebook.dtype if exact else torch.float16
    values = torch.empty(room, (4 if split else 1) * whole, dtype=kind, device=codebook.device)
    squares = torch.empty(room, dtype=torch.float32, device=codebook.device)
    sizes = torch.zeros(5, dtype=torch.float32, device=codebook.device)
    centre = largest = None
    if not exact:
        centre = torch.empty(dim, dtype=torch.float32, device=codebook.device)
        largest = sizes[4:]
        _measure_codes_kernel[(triton.cdiv(size, MEASURE["BLOCK_K"]),)](
            *(codebook, centre, largest.view(torch.int32), size, *codebook.stride()),
            D=dim,
            SAMPLES=512,
            INTERPRETED=common.INTERPRETED,
            **MEASURE,
        )
    block = min(PADDING, 64) if common.INTERPRETED else max(1, 1024 // whole)
    _round_codes_kernel[(room // block,)](
        *(codebook, centre, largest, values, squares, sizes.view(torch.int32), size, *codebook.stride()),
        D=dim,
        WHOLE=whole,
        SPLIT=split,
        BLOCK_K=block,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return Codes(values, squares, sizes, centre, largest, split)


def round_vectors(tokens: Tokens, codes: Codes, first: int, room: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``room`` tokens from ``first`` on: rounded ``(room, W)``, their scale 2^a and their margin, ``(room,)``."""
    width = codes.values.shape[1]
    whole = width // 4 if codes.split else width
    vectors = torch.empty(room, width, dtype=codes.values.dtype, device=codes.values.device)
    scales, margins = torch.empty(2, room, dtype=torch.float32, device=codes.values.device)
    _round_vectors_kernel[(triton.cdiv(room, ROWS),)](
        *(tokens.maps, tokens.strides, tokens.cells, tokens.number, codes.centre, codes.largest, codes.sizes),
        *(vectors, scales, margins, first, first + room, *tokens.maps[-1].shape[2:]),
        ERROR=1.01 * ACCUMULATION * (width + 16),
        G=len(tokens.maps),
        D=dim,
        WHOLE=whole,
        SPLIT=codes.split,
        BLOCK_N=ROWS,
        BLOCK_D=min(32, whole),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return vectors, scales, margins
