"""The codebook as the scan of ``nearest_code`` reads it: centred, scaled, and rounded to float16.

Float32 codes are centred on the mean m of some of them, which moves no argmin, scaled by a power of two, which rounds
nothing, and rounded to float16: once, or for few channels (SPLIT) into a sum of two, so that a product of four times
the depth has 22 bits. If codes and vectors are both float16 or both bfloat16 the codes are taken as they are, since
products of two such numbers are exact in float32. ``rounding`` does the same to the vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqcore.kernels.common import bound, cdiv, next_power_of_2

PADDING = 256  # the number of codes is padded to a multiple of it; every block of a scan divides it
#: A program measures so many numbers at once, and of the mean it finds so many channels.
MEASURE = {"ELEMENTS": 4096, "CHANNELS": 16, "num_warps": 8}
SAMPLES = 512  # codes whose mean is the centre, at most
ROUNDED = 2048  # numbers, in float64, that a program rounds at once
SPLIT_DIM = 16  # up to so many channels comparing scores takes longer than a product of four times the depth


class Codes(NamedTuple):
    """A codebook prepared for the scan. K is padded to K', a multiple of PADDING, with codes that are never nearest.

    A code with a NaN or an infinity is such a code, too. ``survey`` fills the centre, ``rounding`` the rest.
    """

    values: Tensor  # (K', W) float16 or bfloat16, -q
    squares: Tensor  # (K',) float32, h; infinite for padding
    sizes: Tensor  # (5,) float32: the largest ||Q||, ||Q - q||, ||q||, h, and `largest`
    centre: Tensor | None  # (D,) float32, m; None where values are taken as they are
    largest: Tensor | None  # (1,) float32, at least half of the largest |e - m|
    split: bool

    @classmethod
    def empty(cls, codebook: Tensor, exact: bool, sizes: Tensor | None = None) -> Codes:
        """Room for ``codebook (K, D)``; ``exact`` says that it and the vectors are both float16 or both bfloat16.

        ``sizes`` are zeros ``(5,)`` float32, if there are some at hand.
        """
        size, dim = codebook.shape
        split = not exact and dim <= SPLIT_DIM
        whole = max(4 if split else 16, next_power_of_2(dim))
        room = cdiv(size, PADDING) * PADDING
        kind = codebook.dtype if exact else torch.float16
        values = torch.empty(room, (4 if split else 1) * whole, dtype=kind, device=codebook.device)
        squares = torch.empty(room, dtype=torch.float32, device=codebook.device)
        sizes = torch.zeros(5, dtype=torch.float32, device=codebook.device) if sizes is None else sizes
        if exact:
            return cls(values, squares, sizes, None, None, split)
        centre = torch.empty(dim, dtype=torch.float32, device=codebook.device)
        return cls(values, squares, sizes, centre, sizes[4:], split)

    @property
    def whole(self) -> int:
        """D padded to a power of two: the channels of a code before it is split."""
        return self.values.shape[1] // (4 if self.split else 1)


@triton.jit
def scale_to(value, POWER: tl.constexpr):
    """The power of two that brings ``value`` between 2^POWER and twice that; for values from 2^-100 to 2^100."""
    value = tl.minimum(tl.maximum(value, 7.9e-31), 1.2e30)
    exponent = value.to(tl.int32, bitcast=True) >> 23
    return ((254 + POWER - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def code_scale(largest):
    """2^b: with it no channel of a centred code reaches 2^15."""
    return scale_to(tl.load(largest), 13)


@triton.jit
def _raise(maximum, values):
    """Raise a maximum of non-negative numbers in memory to these values, rounded up.

    They are compared by their bits, which order them as numbers do; those of NaN are larger still, so that it stays.
    """
    bits = (values * 1.000001).to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(maximum, tl.max(bits, 0))


@triton.jit
def measure_codes(
    codebook, measured, K, program, programs,
    D: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The largest channel of all codes, and the mean of up to SAMPLES codes that are spread evenly over the codebook.

    Each of ``programs`` takes a block of codes for the first, and CHANNELS for the second. NaN and infinity count as 0.
    """
    start, stride_k, stride_d = codebook
    centre, largest = measured
    k = program.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    size = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for channel in range(0, D, BLOCK_D):
        d = channel + tl.arange(0, BLOCK_D)
        where = (k < K)[:, None] & (d < D)[None, :]
        value = tl.load(start + k[:, None] * stride_k + d[None, :].to(tl.int64) * stride_d, mask=where, other=0.0)
        value = tl.abs(value.to(tl.float32))  # (BLOCK_K, BLOCK_D)
        size = tl.maximum(size, tl.where(value < float("inf"), value, 0.0))
    _raise(largest, tl.reshape(size, [BLOCK_K * BLOCK_D]))
    step = tl.cdiv(K, SAMPLES)
    number = tl.cdiv(K, step)
    sample = tl.arange(0, SAMPLES)
    own, jump = program * CHANNELS, programs * CHANNELS
    for channel in range(bound(own), D, bound(jump)):
        d = channel + tl.arange(0, CHANNELS)
        where = (sample < number)[:, None] & (d < D)[None, :]
        from_code = start + (sample.to(tl.int64) * step * stride_k)[:, None] + d[None, :].to(tl.int64) * stride_d
        value = tl.load(from_code, mask=where, other=0.0).to(tl.float32)  # (SAMPLES, CHANNELS)
        value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
        total = tl.sum(value * (1.0 / number), 0)  # the sum of undivided values might overflow
        tl.store(centre + d, total, mask=d < D)  # (CHANNELS,)


@triton.jit
def round_codes(
    codebook, prepared, K, program,
    D: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Round a block of codes. A code with a NaN or an infinity becomes one that only pads the codebook.

    ``prepared`` are the tensors of :class:`Codes`, in their order.
    """
    start, stride_k, stride_d = codebook
    values, squares, sizes, centre, largest = prepared
    sizes = sizes.to(tl.pointer_type(tl.int32), bitcast=True)  # see _raise
    k = program.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, WHOLE)
    where = (k < K)[:, None] & (d < D)[None, :]
    from_code = start + k[:, None] * stride_k + d[None, :].to(tl.int64) * stride_d
    value = tl.load(from_code, mask=where, other=0.0)  # (BLOCK_K, WHOLE)
    value = value.to(tl.float32).to(tl.float64)
    real = (k < K) & (tl.sum(tl.where(tl.abs(value) < float("inf"), 0, 1), 1) == 0)  # (BLOCK_K,)
    where = real[:, None] & (d < D)[None, :]
    scale = 1.0
    if centre is not None:
        scale = code_scale(largest)
        value = (value - tl.load(centre + d, mask=d < D, other=0.0).to(tl.float64)[None, :]) * scale.to(tl.float64)
    value = tl.where(where, value, 0.0)
    square = tl.sum(value * value, 1)
    high = value.to(tl.float32).to(values.dtype.element_ty)
    rest = value - high.to(tl.float32).to(tl.float64)
    out = values + k[:, None] * (4 * WHOLE if SPLIT else WHOLE) + d[None, :]
    high = (-high.to(tl.float32)).to(values.dtype.element_ty)
    tl.store(out, high)  # (BLOCK_K, WHOLE), as are the next three
    if SPLIT:
        low = rest.to(tl.float32).to(tl.float16)
        rest -= low.to(tl.float32).to(tl.float64)
        tl.store(out + WHOLE, high)
        tl.store(out + 2 * WHOLE, -low)
        tl.store(out + 3 * WHOLE, -low)
    miss = tl.sqrt(tl.sum(rest * rest, 1))
    norm = tl.sqrt(square)
    half = square / (2.0 * scale)
    tl.store(squares + k, tl.where(real, half, float("inf")).to(tl.float32))  # (BLOCK_K,)
    _raise(sizes, norm)
    _raise(sizes + 1, miss)
    _raise(sizes + 2, (norm + miss) * (1.4142136 if SPLIT else 1.0))
    _raise(sizes + 3, half)


def codes_at_once(whole: int) -> int:
    """How many codes of ``whole`` channels a program rounds: a power of two that divides ``PADDING``."""
    return min(PADDING, max(1, ROUNDED // whole))


def fits(size: int, dim: int) -> bool:
    """Whether the rounded codes are fewer than 2^31 numbers, whose places the scan counts in 32 bits."""
    whole = max(16, next_power_of_2(dim))
    return (size + PADDING) * (4 * whole if dim <= SPLIT_DIM else whole) < 2**31
