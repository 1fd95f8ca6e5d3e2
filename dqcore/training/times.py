"""When a run last wrote a row and a checkpoint, and how fast it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

__all__ = ["Times"]


class Times:
    """Seconds of the run at its last row and its last checkpoint, and the speed since :meth:`restart`.

    Args:
        start: Seconds of the run at its (new) start.
    """

    def __init__(self, start: float) -> None:
        self.row = self.saved = start
        self.restart()

    def restart(self) -> None:
        """Count images and steps from here."""
        self._images, self._steps, self._start = 0, 0, time.perf_counter()

    def add(self, images: int) -> None:
        """Count a step on a number of images."""
        self._images += images
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done while this is open does not count as time of training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    @property
    def step_seconds(self) -> float:
        """Seconds of a step since the last restart."""
        return (time.perf_counter() - self._start) / self._steps

    @property
    def images_per_second(self) -> float:
        """Images a second since the last restart."""
        return self._images / (time.perf_counter() - self._start)
