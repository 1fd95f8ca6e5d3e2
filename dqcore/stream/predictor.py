"""How likely each number comes next, from the tables, the photo so far and what lies beside it; in integers alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dqcore.stream.tables import PRECISION, TOTAL

__all__ = ["Predictor"]

_SEEN = 1 << 16  # what a number counts, of a table's 2**24: the tables weigh as much as 256 numbers of the photo
_MOST_SEEN = 1 << 30  # then all weights are halved
_SHIFT = 38  # fraction bits of the scale; 24 of a frequency and these fit into 62


class Predictor:
    """The frequencies of the numbers ``0 .. n - 1`` at one place after another.

    A number weighs its frequency in the tables plus how often it was in this photo, times a factor for the class of the
    left neighbour and one for that of the upper neighbour. To that a sixteenth of the tables' own frequencies is added.
    So no number takes less than about a tenth of a bit, and a small file cannot hold a huge photo, unless the tables
    themselves have one number nearly always; :attr:`least_bits` is exact.

    Args:
        table: Frequencies ``(n,)`` of a :class:`dqcore.stream.CodeTables`.
        factors: Factors for each class of a neighbour, ``(C, n)``, in 256ths, below ``2**16``.

    No product exceeds ``2**62``, so int64 holds all of them.
    """

    def __init__(self, table: NDArray[np.int64], factors: NDArray[np.int64]) -> None:
        free = TOTAL - len(table)  # the coder adds 1 to each
        self.size, self._free, self._factors = len(table), free, factors
        self._floor = table * (free >> 4) >> PRECISION
        self._share = free - (free >> 4)
        self._seen, self._sum = table.copy(), TOTAL

    def weights(self, left: int, upper: int) -> NDArray[np.float64]:
        """Whole numbers ``(n,)`` that sum to ``2**24 - n``: the frequencies less 1.

        Args:
            left: Class of the left neighbour; -1 where it is not known.
            upper: Class of the upper neighbour, or -1.
        """
        likely = self._seen
        if left >= 0:
            likely = likely * self._factors[left]
        if upper >= 0:
            likely = likely * self._factors[upper]
        total = int(likely.sum())
        shift = max(0, total.bit_length() - 36)
        scaled = (likely >> shift) * ((self._share << _SHIFT) // (total >> shift))
        result = (scaled >> _SHIFT) + self._floor
        result[0] += self._free - int(result.sum())  # what rounding down has left
        return result.astype(np.float64)

    def learn(self, number: int) -> None:
        """Count a number of this photo."""
        self._seen[number] += _SEEN
        self._sum += _SEEN
        if self._sum > _MOST_SEEN:
            self._seen -= self._seen >> 1
            self._sum = int(self._seen.sum())

    @property
    def least_bits(self) -> float:
        """Bits that a number takes at least, whatever came before."""
        most = self._share + int(self._floor.max()) + 3 * self.size
        return max(0.0, -math.log2(most / TOTAL)) if self.size > 1 else 0.0
