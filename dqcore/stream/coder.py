"""Whole numbers to bytes and back, by tables of frequencies: constriction's range coder, with exact tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqcore.errors import InputError
from dqcore.stream.tables import PRECISION

__all__ = ["Reader", "Writer", "least_bits"]

_WORD = 4  # bytes of a word of the range coder


def table_model(frequencies: NDArray[np.int64]) -> Any:
    """A model of exactly these frequencies, ``(n,)``, which sum to ``2**24``; None if n is 1.

    The library gives each of n numbers a frequency of 1 and divides what is left, ``2**24 - n``, in proportion to the
    floating-point weights it is given. Weights that are whole numbers with just this sum are scaled by exactly 1, so
    nothing is rounded and the model has these frequencies on every machine.
    """
    from constriction import stream

    if len(frequencies) == 1:
        return None
    return stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


def least_bits(frequencies: NDArray[np.int64]) -> float:
    """Bits that the most frequent number takes: nothing takes fewer."""
    return PRECISION - float(np.log2(frequencies.max()))


class Writer:
    """Appends arrays of numbers; :meth:`finish` gives the bytes."""

    def __init__(self) -> None:
        from constriction import stream

        self._coder = stream.queue.RangeEncoder()

    def write(self, numbers: NDArray[np.int32], model: Any) -> None:
        """Append numbers ``(n,)`` by a :func:`table_model`."""
        if model is not None and len(numbers):
            self._coder.encode(np.ascontiguousarray(numbers, dtype=np.int32), model)

    def finish(self) -> bytes:
        """The shortest bytes that are read back as what was written, if zeros follow them."""
        words = self._coder.get_compressed()
        if self._coder.is_empty():
            return b""
        position, (low, width) = self._coder.pos()
        padded = np.zeros(position + 2, dtype=">u4")
        padded[: len(words)] = words
        number, bits = int.from_bytes(padded.tobytes(), "big"), 8 * padded.nbytes
        first = number - (number - low) % (1 << 64)  # every number from here on, less than ``width`` more, will do
        for length in range(padded.nbytes + 1):
            unit = 1 << (bits - 8 * length)
            shortest = -(-first // unit) * unit
            if shortest < first + width:
                return (shortest >> (bits - 8 * length)).to_bytes(length, "big")
        raise AssertionError("the number itself is among them")


class Reader:
    """Reads what :class:`Writer` wrote, in the same order and by the same models.

    Args:
        data: The bytes.
        name: What they are called in messages.
    """

    def __init__(self, data: bytes, name: str) -> None:
        from constriction import stream

        self._name = name
        padded = data + bytes(-len(data) % _WORD + 2 * _WORD)
        self._coder = stream.queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))

    def read(self, count: int, model: Any) -> NDArray[np.int32]:
        """The next ``count`` numbers, int32.

        Raises:
            InputError: The bytes are not what a writer has written.
        """
        if model is None or count == 0:
            return np.zeros(count, dtype=np.int32)
        try:
            return self._coder.decode(model, count)
        except (AssertionError, ValueError) as error:
            raise InputError(f"{self._name}: damaged ({error})") from error
