"""The specification of ``nearest_code``.

The distance of a vector and a code is *defined* as the float64 sum of the squares of their exact differences, added
in the order of :func:`squared_distance`. So the nearest code does not depend on backend, tile size or run.

The square of a difference of two float16, bfloat16 or float32 values neither overflows nor underflows in float64. That
of two float64 values may; then the differences of a vector are first multiplied by a power of two
(:func:`_scaled_distances`), which changes no order.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_code_reference", "squared_distance"]

BLOCK = 2**20  # elements of a temporary tensor
SMALLEST = 2.0**-900  # a distance above this has lost nothing that counts to underflow
FINALISTS = 4  # codes of each vector that a graph compares by their differences
SHIFT = 1000  # the largest exponent of a power of two that differences are multiplied by


def nearest_code_reference(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    """Every distance in float64, for a block of vectors at a time; ``precision`` changes nothing here.

    A distance is finite only if vector and code are. So a code with a NaN or an infinity is never chosen, and a vector
    with one gets code -1. Compiled, exported or traced it is another computation, see :func:`_in_a_graph`.
    """
    if x.dim() == 4:
        codes = nearest_code_reference(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), codebook, precision)
        return codes.view(x.shape[0], *x.shape[2:])
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return _in_a_graph(x, codebook)
    wide = torch.float64 in (x.dtype, codebook.dtype) and x.shape[1] > 0
    codes_of_blocks = [torch.zeros(0, dtype=torch.int64, device=x.device)]
    for vectors in x.split(max(1, BLOCK // codebook.shape[0])):
        parts = codebook.split(max(1, BLOCK // max(1, vectors.shape[0] * x.shape[1])))
        distances = torch.cat([_finite(squared_distance(vectors[:, None], part)) for part in parts], dim=1)
        smallest, codes = distances.amin(1), distances.argmin(1)
        if wide and not _accurate(smallest):
            distances = _scaled_distances(vectors, parts)
            smallest, codes = distances.amin(1), distances.argmin(1)
        codes_of_blocks.append(codes.masked_fill(smallest == torch.inf, -1))
    return torch.cat(codes_of_blocks)


def _in_a_graph(x: Tensor, codebook: Tensor) -> Tensor:
    """The same in a few operations whatever N and K, which a graph without loops can hold: 36000 were too many.

    A float64 product finds the nearest codes up to its rounding, and the differences of those decide. Holds ``(N, K)``.
    """
    wide = codebook.double()
    scores = wide.square().sum(1) - 2 * (x.double() @ wide.T)
    finalists = scores.topk(min(FINALISTS, len(codebook)), dim=1, largest=False).indices
    distances = _finite(squared_distance(x[:, None], codebook[finalists]))
    smallest = distances.amin(1)
    codes = finalists.masked_fill(distances > smallest[:, None], len(codebook)).amin(1)
    return codes.masked_fill(smallest == torch.inf, -1)


def squared_distance(x: Tensor, codes: Tensor) -> Tensor:
    """``||x - codes||^2`` over the last dimension in float64.

    The squares are padded with zeros to a power of two, then the second half is added to the first until one is left.
    """
    return _sum_of_squares(x.double() - codes.double())


def _sum_of_squares(difference: Tensor) -> Tensor:
    square = difference.square()
    width = 1 << max(0, int(square.shape[-1]) - 1).bit_length()  # a number, though traced
    square = torch.nn.functional.pad(square, (0, width - square.shape[-1]))
    while width > 1:
        width //= 2
        square = square[..., :width] + square[..., width:]
    return square[..., 0]


def _finite(distances: Tensor) -> Tensor:
    """The distances, infinite where they are NaN."""
    return distances.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _accurate(smallest: Tensor) -> bool:
    """Whether surely no overflow or underflow changed these distances. False where the host would wait."""
    if torch._C._are_functorch_transforms_active():
        return False
    return smallest.device.type == "cpu" and bool(((smallest > SMALLEST) & (smallest < torch.inf)).all())


def _scaled_distances(x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """Distances ``(n, K)`` of float64 vectors ``x (n, D)``, those of each vector times the same factor.

    The factor brings the largest channel of one code's difference near 1, and of no other code's below that. So the
    nearest code's distance neither overflows nor underflows, and one that overflows is not the smallest. Differences
    that may overflow before they are scaled are those of the halves.
    """
    x = x.double()[:, None]
    largest = torch.cat([_finite((x - part.double()).abs().amax(-1)) for part in parts], dim=1).amin(1)
    _, exponent = torch.frexp(largest)
    exponent = torch.where(largest == torch.inf, SHIFT, torch.where(largest == 0, -SHIFT, exponent))
    factor = _power_of_two(-exponent.clamp(-SHIFT, SHIFT))[:, None, None]
    half = torch.where(largest > 2.0**SHIFT, 0.5, 1.0).double()[:, None, None]
    return torch.cat([_finite(_sum_of_squares((x * half - part.double() * half) * factor)) for part in parts], dim=1)


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` in float64, exactly, by its bits."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
