"""The codebook as the product of ``nearest_code`` on the CPU reads it, and by how much a score may be off.

:mod:`dqcore.ops.cpu.product_search` explains both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dqcore import backends

__all__ = ["Block", "FewVectorsCodes", "PreparedCodes", "power_of_two"]

PAIRS = 2**18  # elements of a part in float64: 2 MB


class Block(NamedTuple):
    """Some codes, prepared for the product."""

    first: int  # index of the block's first code
    values: Tensor  # -2 c', (k, D)
    square: Tensor  # ||c'||^2, (k,)


class PreparedCodes:
    """A codebook, centred and scaled, and what is known of all its codes.

    Args:
        codebook: ``(K, D)``; float16, bfloat16 or float32.
        block_size: Codes of a block.
        lanes: A block is padded to a multiple of this many codes.
    """

    def __init__(self, codebook: Tensor, block_size: int, lanes: int) -> None:
        self.codebook, self.block_size, self.lanes = codebook, block_size, lanes
        self.dtype = torch.float32 if backends.exact_float32_matmul() else torch.float64
        self.unit = torch.finfo(self.dtype).eps / 2
        self.starts = range(0, len(codebook), block_size)
        self.finite: Tensor | None = None  # (K,), which codes are finite, unless all are
        mean = _mean(self._finite_parts())
        if mean is None or not math.isfinite(mean.sum().item()):
            self.finite = torch.cat([part.isfinite().all(1) for part in codebook.split(block_size)])
            mean = _mean(self._finite_parts())
        self.empty = mean is None
        if mean is not None:
            self._measure(mean.to(self.dtype))

    def _measure(self, mean: Tensor) -> None:
        """Set centre, scale and radius of the finite codes."""
        dim = len(mean)
        largest = max(float((part.to(self.dtype) - mean).abs().max()) if dim else 0.0 for part in self._finite_parts())
        self.scale = power_of_two(largest)
        self.mean = mean * self.scale
        norms = (torch.linalg.vector_norm(self._centred(part), dim=1).max() for part in self._finite_parts())
        self.radius = float(max(norms)) * 1.0001

    def _finite_parts(self) -> Iterator[Tensor]:
        """The codes without a NaN or an infinity, in parts of bounded size."""
        for first in self.starts:
            part = self.codebook[first : first + self.block_size]
            if self.finite is not None:
                part = part[self.finite[first : first + self.block_size]]
            if len(part):
                yield part

    def block(self, first: int) -> Block:
        """The block that begins with code ``first``."""
        codes = self.codebook[first : first + self.block_size]
        padded = len(codes) + -len(codes) % self.lanes  # with codes at infinity, which are never candidates
        values = torch.zeros(padded, codes.shape[1], dtype=self.dtype)
        square = torch.full((padded,), torch.inf, dtype=self.dtype)
        mean, rows = self.mean.double(), max(1, PAIRS // max(1, codes.shape[1]))
        for start in range(0, len(codes), rows):
            exact = codes[start : start + rows].double().mul_(self.scale).sub_(mean)
            where = slice(start, start + len(exact))
            values[where] = exact * -2
            square[where] = exact.square_().sum(1)
        if self.finite is not None:
            strange = (~self.finite[first : first + len(codes)]).nonzero()[:, 0]
            values[strange], square[strange] = 0, torch.inf
        return Block(first, values, square)

    def _centred(self, x: Tensor) -> Tensor:
        """``x'`` or ``c'``."""
        return x.to(self.dtype).mul(self.scale).sub_(self.mean)

    def centre(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Centre vectors ``(n, D)``.

        Returns:
            ``x'``, ``(n, D)``; the margin 2E of each vector, ``(n,)``, NaN for strange ones; and which vectors are
            strange, ``(n,)`` bool, or None if none is.
        """
        centred = self._centred(vectors)
        norm = torch.linalg.vector_norm(centred, dim=1).mul_(1.0001)
        return centred, *_margin(norm, self.radius, vectors.shape[1], self.unit)


class FewVectorsCodes:
    """A codebook of one block in float64, neither centred nor scaled, for a search by few vectors: it is made faster.

    Neither centre nor scale is needed: float64 holds the squares of float32's whole range, and its error bound is
    small beside any distance that is not a tie. It has what :class:`PreparedCodes` has; ``usable`` is False if a code
    is not finite.
    """

    empty = False

    def __init__(self, codebook: Tensor, lanes: int) -> None:
        self.block_size, self.starts = max(1, len(codebook)), range(1)
        values = codebook.double()
        square = values.square().sum(1)
        self.radius = square.max().sqrt().item() * 1.0001
        self.usable = math.isfinite(self.radius)
        if padding := -len(codebook) % lanes:
            values = F.pad(values, (0, 0, 0, padding))
            square = F.pad(square, (0, padding), value=torch.inf)
        self._block = Block(0, values, square)

    def block(self, first: int) -> Block:
        """The codes without the factor -2: :meth:`centre` gives it to the vectors."""
        return self._block

    def centre(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The vectors times -2; margins and strange vectors as :meth:`PreparedCodes.centre` returns them."""
        values = vectors.double()
        norm = torch.linalg.vector_norm(values, dim=1).mul_(1.0001)
        return values.mul_(-2), *_margin(norm, self.radius, vectors.shape[1], 2.0**-53)


def _margin(norm: Tensor, radius: float, dim: int, unit: float) -> tuple[Tensor, Tensor | None]:
    """Margins 2E for vectors of these norms, ``(n,)``; and which are not finite, or None if all are.

    A margin that is not finite becomes NaN, so that no score lies within it.
    """
    error = 1.01 * (dim + 8) * unit * (2 * norm + radius) * radius + 2.0**-47 * (norm + radius).square()
    margin = 2 * error
    if math.isfinite(margin.sum().item()):
        return margin, None
    strange = ~margin.isfinite()
    return margin.masked_fill_(strange, torch.nan), strange


def _mean(parts: Iterable[Tensor]) -> Tensor | None:
    """The mean of all codes, float64; None if there are none."""
    sums = [(part.double().sum(0), len(part)) for part in parts]
    return torch.stack([total for total, _ in sums]).sum(0) / sum(number for _, number in sums) if sums else None


def power_of_two(largest: float) -> float:
    """The power of two that brings ``largest`` near 1, from 2^-120 to 2^120 so that float32 can hold it; 1 for 0."""
    if not 0 < largest < float("inf"):
        return 2.0**-120 if largest else 1.0
    _, exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64))
    return 2.0 ** -max(-120, min(120, int(exponent)))
