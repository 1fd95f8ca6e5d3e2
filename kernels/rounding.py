"""Vectors as the scan of ``nearest_code`` reads them, and how far a score computed from them may be off.

They are centred, scaled and rounded to float16 as the codes are (``codes``). With p and q for the rounded vectors and
codes, the scan computes ``t_k = 2^a h_k - p.q_k``, ``h_k = 2^(b-1) ||e_k - m||^2``: scores that order the codes of a
vector as their distances do. Each vector also gets a margin: if two of its scores differ by more, rounding cannot have
swapped them. ``docs/exactness.md`` derives it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.codes import Codes, code_scale, codes_at_once, round_codes, scale_to
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


@triton.jit
def _pack(rows, row, block, inside, channel, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors as they are to the packed rows, if there are any."""
    if rows is not None:
        d = channel + tl.arange(0, BLOCK_D)
        known = inside[:, None] & (d < D)[None, :]
        tl.store(rows + row[:, None] * D + d[None, :], block, mask=known)  # (BLOCK_N, BLOCK_D)


@triton.jit
def _round_vectors(
    where, codes, out, first, N, height, width, begin,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Round BLOCK_N vectors from ``first + begin`` on. If a block holds all their channels it is read once, else twice.

    ``rows``, if given, gets the vectors as they are.
    """
    maps, strides, cells, _, rows = where
    centre, largest = codes
    vectors, scales, squares, lost = out
    row = begin + tl.arange(0, BLOCK_N)
    inside = first + row < N
    granularity, _, image, line, column = locate(first + row, inside, cells, height, width)
    start, stride = starts(maps, strides, None, row, granularity, image, line, column, G, D, ALIGN)
    scale = tl.full([BLOCK_N], 1.0, tl.float32)
    block = block_of(start, stride, inside, 0, D, BLOCK_D, ALIGN)  # (BLOCK_N, BLOCK_D)
    if WHOLE == BLOCK_D:  # at once: to keep its addresses until the end took registers that some GPUs have not
        _pack(rows, first + row, block, inside, 0, D, BLOCK_D)
    if centre is not None:
        largest_here = tl.max(tl.abs(_centred(block, inside, centre, 0, D, BLOCK_D)), 1)
        for channel in range(BLOCK_D, D, BLOCK_D):
            other = block_of(start, stride, inside, channel, D, BLOCK_D, ALIGN)
            other = _centred(other, inside, centre, channel, D, BLOCK_D)  # (BLOCK_N, BLOCK_D)
            largest_here = tl.maximum(largest_here, tl.max(tl.abs(other), 1))
        scale = tl.minimum(scale_to(largest_here, 14), code_scale(largest) * 256)
    square = tl.zeros([BLOCK_N], tl.float32)
    loss = tl.zeros([BLOCK_N], tl.float32)
    for channel in range(0, WHOLE, BLOCK_D):
        if WHOLE > BLOCK_D:
            block = block_of(start, stride, inside, channel, D, BLOCK_D, ALIGN)
            _pack(rows, first + row, block, inside, channel, D, BLOCK_D)
        d = channel + tl.arange(0, BLOCK_D)
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
        loss += tl.sum(rest * rest, 1)
    tl.store(scales + row, scale, mask=inside)  # (BLOCK_N,), as are the next two
    tl.store(squares + row, square, mask=inside)
    tl.store(lost + row, loss, mask=inside)


@triton.jit(do_not_specialize=["programs", "K", "first", "N", "height", "width"])
def _nearest_code_round_kernel(
    codebook, codes, programs, K, where, out, first, N, height, width,
    G: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The first ``programs`` round codes, all others vectors; ``codebook`` is None where codes were rounded before."""
    program = tl.program_id(0)
    if codebook is not None:  # noqa: SIM102 - decided as it is compiled, which an `and` need not be
        if program < programs:
            round_codes(codebook, codes, K, program, D, WHOLE, SPLIT, BLOCK_K)
    begin = (program - programs).to(tl.int64) * BLOCK_N
    count = where[3]
    if count is not None:
        N = tl.minimum(N, tl.load(count))
    if (program >= programs) & (first + begin < N):
        _round_vectors(
            *(where, codes[3:], out, first, N, height, width, begin),
            *(G, D, ALIGN, WHOLE, SPLIT, BLOCK_N, BLOCK_D),
        )


@triton.jit
def margin(rounded, codes, row, inside, ERROR, SPLIT: tl.constexpr):
    """By how much two scores of a vector may be wrong against each other, ``(BLOCK_N,)``; docs/exactness.md derives it.

    Args:
        rounded: Of the vectors, in the order of :class:`Rounded`.
        codes: The codes' ``sizes`` and ``largest``, as in :class:`Codes`.
        row: Which vectors, ``(BLOCK_N,)``.
        inside: Which of them there are.
        ERROR: What a tensor core may lose of a sum, as a share of the norms' product.
        SPLIT: Whether each vector was rounded to a sum of two.
    """
    _, scales, squares, lost = rounded
    sizes, largest = codes
    scale = tl.load(scales + row, mask=inside, other=1.0)  # (BLOCK_N,), as are the next two
    square = tl.load(squares + row, mask=inside, other=0.0)
    miss = tl.load(lost + row, mask=inside, other=0.0)
    norm = tl.sqrt(square) * 1.001 + 1e-16
    tiny = 1e-36 * scale + 1e-18  # what may underflow, 2^-126 a channel, and be flushed to zero
    miss = tl.sqrt(miss) * 1.001 + 6e-8 * norm + tiny  # centring rounds by 2^-24
    code_norm, code_miss = tl.load(sizes), tl.load(sizes + 1)
    size = (norm + miss) * (1.4142136 if SPLIT else 1.0) * tl.load(sizes + 2)
    top = scale * tl.load(sizes + 3)
    error = ERROR * (size + top) + (6.1e-8 * top + 1e-20) + tiny  # the running sum begins with 2^a h
    ratio = 1.0  # 2^(a - b), the vector's share of the codes' scale
    if largest is not None:
        ratio = scale / code_scale(largest)
        error += miss * code_norm + (norm + miss) * code_miss
    # the float64 distance that defines the answer is rounded, too: 2^-48 of (||x - m|| + ||e - m||)^2
    error += 3.6e-15 * (norm * norm / ratio + 2 * norm * code_norm + code_norm * code_norm * ratio)
    sure = (size < 1e37) & (top < 1e37)
    return tl.where(sure, 2.01 * error, float("inf"))


class Rounded(NamedTuple):
    """Vectors of a part, as the scan reads them, and what their margins follow from."""

    vectors: Tensor  # (room, W) float16 or bfloat16, p
    scales: Tensor  # (room,) float32, 2^a
    squares: Tensor  # (room,) float32, the squared norms of the scaled vectors
    lost: Tensor  # (room,) float32, the same of what rounding took from them


def round_vectors(batch: Vectors, prepared: Codes, first: int, room: int, codebook: Tensor) -> Rounded:
    """Round ``room`` vectors from ``first`` on; with the first of a batch its codes, side by side.

    Where the batch has room for packed rows, these are filled, too; vectors that are not rounded are their own rows.
    """
    (size, dim), (room_k, width), whole = codebook.shape, prepared.values.shape, prepared.whole
    rows = batch.rows
    if rows is not None and prepared.centre is None and width == dim:
        vectors, rows = rows[first : first + room], None
    else:
        vectors = torch.empty(room, width, dtype=prepared.values.dtype, device=codebook.device)
    out = Rounded(vectors, *torch.empty(3, room, dtype=torch.float32, device=codebook.device))
    tile, block = tile_for(whole), codes_at_once(whole)
    programs = room_k // block if first == 0 else 0
    launch(_nearest_code_round_kernel, (programs + cdiv(room, tile["BLOCK_N"]),))(
        (codebook, *codebook.stride()) if programs else None,
        (*prepared[:2], prepared.sizes.view(torch.int32), prepared.centre, prepared.largest),
        *(programs, size),
        (batch.maps, batch.strides, batch.cells, batch.number, rows),
        *(tuple(out), first, first + room, *batch.maps[-1].shape[2:]),
        G=len(batch.maps),
        D=dim,
        ALIGN=batch.align,
        WHOLE=whole,
        SPLIT=prepared.split,
        BLOCK_K=block,
        **tile,
        enable_fp_fusion=True,
    )
    return out


def error_of(width: int) -> float:
    """What a tensor core may lose of a sum of ``width`` products and what it starts with, as ``margin`` takes it."""
    return 1.01 * ACCUMULATION * (width + 16)


def tile_for(whole: int) -> dict[str, int]:
    """How many vectors of ``whole`` channels a program rounds, and how many channels at once: all, up to WIDEST."""
    block = min(ROUND["WIDEST"], whole)
    return {"BLOCK_N": max(1, min(ROUND["ROWS"], ROUND["ELEMENTS"] // block)), "BLOCK_D": block,
            "num_warps": ROUND["num_warps"]}  # fmt: skip
