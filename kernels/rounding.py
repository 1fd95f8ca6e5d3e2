"""Vectors as the scan of ``nearest_code`` reads them, and how far a score computed from them may be off.

They are centred, scaled and rounded to float16 as the codes are (``codes``). With p and q for the rounded vectors and
codes, the scan computes ``t_k = 2^a h_k - p.q_k``, ``h_k = 2^(b-1) ||e_k - m||^2``: scores that order the codes of a
vector as their distances do. Each vector also gets a margin: if two of its scores differ by more, rounding cannot have
swapped them. ``docs/exactness.md`` derives it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.codes import Codes, code_scale, scale_to
from dqcore.kernels.common import cdiv
from dqcore.kernels.launch import launch
from dqcore.kernels.vectors import Vectors, block_of, locate, starts

#: What a tensor core may lose of a sum of W products, for each channel and as a share of ||p|| ||q||. An H100 loses at
#: most a third of this: docs/exactness.md.
ACCUMULATION = 2.0**-24
#: A program holds so many elements at once: at most ROWS vectors, and of each at most WIDEST channels.
ROUND = {"ELEMENTS": 4096, "ROWS": 128, "WIDEST": 512, "num_warps": 8}


@triton.jit
def _centred(value, inside, centre, channel, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors ``(BLOCK_N, BLOCK_D)`` less the centre, float32."""
    value = value.to(tl.float32)
    if centre is not None:
        d = channel + tl.arange(0, BLOCK_D)
        middle = tl.load(centre + d, mask=d < D, other=0.0)  # (BLOCK_D,)
        value = tl.where(inside[:, None] & (d < D)[None, :], value - middle[None, :], 0.0)
    return value


@triton.jit(do_not_specialize=["first", "N", "height", "width"])
def _nearest_code_round_vectors_kernel(
    where, codes, out, first, N, height, width, ERROR,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Round BLOCK_N vectors. If a block holds all their channels it is read once, otherwise twice.

    ``rows``, if given, gets the vectors as they are.
    """
    maps, strides, cells, count, rows = where
    centre, largest, sizes = codes
    vectors, scales, margins = out
    if count is not None:
        N = tl.minimum(N, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK_N
    if first + begin >= N:
        return
    row = begin + tl.arange(0, BLOCK_N)
    inside = first + row < N
    granularity, _, image, line, column = locate(first + row, inside, cells, height, width)
    start, stride = starts(maps, strides, None, row, granularity, image, line, column, G, D, ALIGN)
    scale = tl.full([BLOCK_N], 1.0, tl.float32)
    ratio = scale
    block = block_of(start, stride, inside, 0, D, BLOCK_D, ALIGN)  # (BLOCK_N, BLOCK_D)
    if centre is not None:
        largest_here = tl.max(tl.abs(_centred(block, inside, centre, 0, D, BLOCK_D)), 1)
        for channel in range(BLOCK_D, D, BLOCK_D):
            other = block_of(start, stride, inside, channel, D, BLOCK_D, ALIGN)
            other = _centred(other, inside, centre, channel, D, BLOCK_D)  # (BLOCK_N, BLOCK_D)
            largest_here = tl.maximum(largest_here, tl.max(tl.abs(other), 1))
        codes_scale = code_scale(largest)
        scale = tl.minimum(scale_to(largest_here, 14), codes_scale * 256)
        ratio = scale / codes_scale
    square = tl.zeros([BLOCK_N], tl.float32)
    lost = tl.zeros([BLOCK_N], tl.float32)
    for channel in range(0, WHOLE, BLOCK_D):
        if WHOLE > BLOCK_D:
            block = block_of(start, stride, inside, channel, D, BLOCK_D, ALIGN)
        d = channel + tl.arange(0, BLOCK_D)
        if rows is not None:
            known = inside[:, None] & (d < D)[None, :]
            tl.store(rows + (first + row)[:, None] * D + d[None, :], block, mask=known)  # (BLOCK_N, BLOCK_D)
        value = _centred(block, inside, centre, channel, D, BLOCK_D) * scale[:, None]
        high = value.to(vectors.dtype.element_ty)
        rest = value - high.to(tl.float32)
        to = vectors + row[:, None] * (4 * WHOLE if SPLIT else WHOLE) + d[None, :]
        tl.store(to, high, mask=inside[:, None])  # (BLOCK_N, BLOCK_D), as are the next three
        if SPLIT:
            low = rest.to(tl.float16)
            rest -= low.to(tl.float32)
            tl.store(to + 2 * WHOLE, high, mask=inside[:, None])
            tl.store(to + WHOLE, low, mask=inside[:, None])
            tl.store(to + 3 * WHOLE, low, mask=inside[:, None])
        square += tl.sum(value * value, 1)
        lost += tl.sum(rest * rest, 1)
    margin = _margin(square, lost, scale, ratio, sizes, ERROR, centre is not None, SPLIT)
    tl.store(scales + row, scale, mask=inside)  # (BLOCK_N,)
    tl.store(margins + row, margin, mask=inside)  # (BLOCK_N,)


@triton.jit
def _margin(square, lost, scale, ratio, sizes, ERROR, CENTRED: tl.constexpr, SPLIT: tl.constexpr):
    """By how much two scores of a vector may be wrong against each other, ``(BLOCK_N,)``; docs/exactness.md derives it.

    Args:
        square: Squared norm of the scaled vector, as float32 sums it.
        lost: The same of what rounding to float16 took from it.
        scale: 2^a, the vector's.
        ratio: 2^(a - b), its share of the codes' scale.
        sizes: The codebook's largest norms, as in :class:`Codes`.
        ERROR: What a tensor core may lose of a sum, as a share of the norms' product.
        CENTRED: Whether vectors were centred and rounded at all.
        SPLIT: Whether each was rounded to a sum of two.
    """
    norm = tl.sqrt(square) * 1.001 + 1e-16
    tiny = 1e-36 * scale + 1e-18  # what may underflow, 2^-126 a channel, and be flushed to zero
    miss = tl.sqrt(lost) * 1.001 + 6e-8 * norm + tiny  # centring rounds by 2^-24
    code_norm, code_miss = tl.load(sizes), tl.load(sizes + 1)
    size = (norm + miss) * (1.4142136 if SPLIT else 1.0) * tl.load(sizes + 2)
    top = scale * tl.load(sizes + 3)
    error = ERROR * (size + top) + (6.1e-8 * top + 1e-20) + tiny  # the running sum begins with 2^a h
    if CENTRED:
        error += miss * code_norm + (norm + miss) * code_miss
    # the float64 distance that defines the answer is rounded, too: 2^-48 of (||x - m|| + ||e - m||)^2
    error += 3.6e-15 * (norm * norm / ratio + 2 * norm * code_norm + code_norm * code_norm * ratio)
    sure = (size < 1e37) & (top < 1e37)
    return tl.where(sure, 2.01 * error, float("inf"))


def round_vectors(batch: Vectors, codes: Codes, first: int, room: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``room`` vectors from ``first`` on, rounded ``(room, W)``; their scales 2^a, their margins, each ``(room,)``.

    Where the batch has room for packed rows, these are filled, too; vectors that are not rounded are their own rows.
    """
    width = codes.values.shape[1]
    whole = width // 4 if codes.split else width
    rows = batch.rows
    if rows is not None and codes.centre is None and width == dim:
        rounded, rows = rows[first : first + room], None
    else:
        rounded = torch.empty(room, width, dtype=codes.values.dtype, device=codes.values.device)
    scales, margins = torch.empty(2, room, dtype=torch.float32, device=codes.values.device)
    tile = tile_for(whole)
    launch(_nearest_code_round_vectors_kernel, (cdiv(room, tile["BLOCK_N"]),))(
        (batch.maps, batch.strides, batch.cells, batch.number, rows),
        (codes.centre, codes.largest, codes.sizes),
        (rounded, scales, margins),
        *(first, first + room, *batch.maps[-1].shape[2:]),
        ERROR=1.01 * ACCUMULATION * (width + 16),
        G=len(batch.maps),
        D=dim,
        ALIGN=batch.align,
        WHOLE=whole,
        SPLIT=codes.split,
        **tile,
        enable_fp_fusion=True,
    )
    return rounded, scales, margins


def tile_for(whole: int) -> dict[str, int]:
    """How many vectors of ``whole`` channels a program rounds, and how many channels at once: all, up to WIDEST."""
    block = min(ROUND["WIDEST"], whole)
    return {"BLOCK_N": max(1, min(ROUND["ROWS"], ROUND["ELEMENTS"] // block)), "BLOCK_D": block,
            "num_warps": ROUND["num_warps"]}  # fmt: skip
