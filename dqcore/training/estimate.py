"""How long a run will take, told after its first steps, and a warning where it would take days."""

from __future__ import annotations

import logging

from dqcore.progress import duration
from dqcore.training.schedule import LearningRate, TimedLearningRate

__all__ = ["Estimate"]

log = logging.getLogger(__name__)

#: An estimate is made after this many steps, the first of which is not counted, and this many seconds of them.
STEPS, SECONDS = 4, 4.0
#: A longer run is asked about.
DAY = 86_400.0


class Estimate:
    """Measures the first steps of a run.

    Args:
        length: The run's length.
        start: Steps done before.
    """

    def __init__(self, length: LearningRate | TimedLearningRate, start: int) -> None:
        self.length, self.start = length, start
        self._first: float | None = None
        self._told = False
        self.step_seconds = self.seconds = 0.0

    def after(self, completed: int, seconds: float) -> bool:
        """Whether enough is known now; true once.

        Args:
            completed: Steps done.
            seconds: Time of the run so far.
        """
        if self._told:
            return False
        if self._first is None:  # the first step also starts loaders and compiles kernels
            self._first = seconds
            return False
        steps = completed - self.start - 1
        self._told = steps >= STEPS and seconds - self._first >= SECONDS
        self.step_seconds, self.seconds = (seconds - self._first) / steps, seconds
        return self._told

    def tell(self, completed: int) -> str | None:
        """Log how long the run will take.

        Returns:
            A question to ask before going on, if that is more than a day; else None.
        """
        if isinstance(self.length, TimedLearningRate):
            left = max(0.0, self.length.seconds - self.seconds)
            steps = completed + left / self.step_seconds
            length = duration(self.length.seconds)
            log.info("about %d steps in %s: %.2g s each so far", steps, length, self.step_seconds)
            return None
        left = (self.length.total - completed) * self.step_seconds
        about = f"about {duration(left)} to go: {self.length.total} steps of {self.step_seconds:.2g} s"
        if left <= DAY:
            log.info("%s", about)
            return None
        log.warning("%s; --minutes M makes a run of M minutes, --recipe small is meant for a CPU", about)
        return f"This will take about {duration(left)}. Go on?"
