"""Whole numbers to bytes and back: the range coder of constriction, with exact frequencies."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dqcore.errors import InputError
from dqcore.stream.predictor import Predictor

__all__ = ["Coder", "Reader", "Writer"]

_WORD = 4  # bytes of a word of the range coder


class Coder(Protocol):
    """A writer or a reader: what walks over a photo need not know which."""

    def code(self, predictor: Predictor, left: int, upper: int, number: int) -> int:
        """Write ``number`` and return it, or read one."""
        ...


# The library gives each of n numbers a frequency of 1 and divides what is left, 2**24 - n, in proportion to the weights
# it is given as floating-point numbers. Weights that are whole numbers with just this sum are scaled by exactly 1:
# there is nothing to round, and the frequencies are those of the predictor on every machine.
class Writer:
    """Writes numbers; :meth:`finish` gives the bytes."""

    def __init__(self) -> None:
        from constriction import stream

        self._coder, self._model = stream.queue.RangeEncoder(), stream.model.Categorical

    def code(self, predictor: Predictor, left: int, upper: int, number: int) -> int:
        """Write a number and return it."""
        if predictor.size > 1:
            model = self._model(predictor.weights(left, upper), perfect=False, lazy=True)
            self._coder.encode(number, model)
            predictor.learn(number)
        return number

    def finish(self) -> bytes:
        """The shortest bytes that are read back as what was written, if zeros follow them."""
        if self._coder.is_empty():
            return b""
        words = self._coder.get_compressed()
        position, (low, width) = self._coder.pos()
        padded = np.zeros(position + 2, dtype=">u4")
        padded[: len(words)] = words
        value, bits = int.from_bytes(padded.tobytes(), "big"), 8 * padded.nbytes
        first = value - (value - low) % (1 << 64)  # every value from here on, less than ``width`` more, will do
        for length in range(max(0, padded.nbytes - 9), padded.nbytes + 1):
            unit = 1 << (bits - 8 * length)
            shortest = -(-first // unit) * unit
            if shortest < first + width:
                return (shortest >> (bits - 8 * length)).to_bytes(length, "big")
        raise AssertionError("the value itself is among them")


class Reader:
    """Reads what :class:`Writer` wrote, in the same order and with the same predictors.

    Args:
        data: The bytes.
        name: What they are called in messages.
    """

    def __init__(self, data: bytes, name: str) -> None:
        from constriction import stream

        self._name, self._model = name, stream.model.Categorical
        padded = data + bytes(-len(data) % _WORD + 2 * _WORD)
        self._coder = stream.queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))

    def code(self, predictor: Predictor, left: int, upper: int, number: int = 0) -> int:
        """Read a number; the argument ``number`` is ignored.

        Raises:
            InputError: The bytes are not what a writer has written.
        """
        if predictor.size == 1:
            return 0
        model = self._model(predictor.weights(left, upper), perfect=False, lazy=True)
        try:
            found = int(self._coder.decode(model))
        except (AssertionError, ValueError) as error:
            raise InputError(f"{self._name}: damaged ({error})") from error
        predictor.learn(found)
        return found
