"""When the loop of a run did what, and how fast it goes."""

from __future__ import annotations

import time

__all__ = ["Times"]


class Times:
    """When something was done last, in seconds of the run, and the images trained on since the last row.

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

    @property
    def step_seconds(self) -> float:
        """Seconds of a step since the last restart."""
        return (time.perf_counter() - self._start) / self._steps

    @property
    def images_per_second(self) -> float:
        """Images a second since the last restart."""
        return self._images / (time.perf_counter() - self._start)
