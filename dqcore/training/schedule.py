"""How long a run is, and the learning rate at each point of it: functions of step and time, without a state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["LearningRate", "Schedule", "TimedLearningRate"]

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class LearningRate:
    """``peak * min(1, (s + 1) / warmup) * decay(s)`` for step s = 0, 1, ...

    The decay is 1 (``"constant"``) or, after the warm-up, ``(1 + cos(pi t)) / 2`` with t rising from 0 to 1 over the
    remaining steps (``"cosine"``).

    Attributes:
        peak: Learning rate after the warm-up.
        warmup: Steps of linear warm-up; the first step has ``peak / warmup``.
        total: Steps of the run.
        decay: ``"constant"`` or ``"cosine"``.
    """

    peak: float
    warmup: int
    total: int
    decay: Schedule = "constant"

    def __call__(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of a step, counted from 0; the time does not matter."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.peak * _decay(self.decay, (step - self.warmup) / max(1, self.total - self.warmup))

    def share(self, steps: int, seconds: float) -> float:
        """How much of the run is over at a step; 1 at its end."""
        return steps / self.total


@dataclass(frozen=True)
class TimedLearningRate:
    """A learning rate that falls with time, for a run that ends by the clock, however fast its steps are.

    Attributes:
        peak: Learning rate after the warm-up.
        warmup: Steps of linear warm-up.
        seconds: Length of the run.
        decay: ``"constant"``, or ``"cosine"`` over the whole time.
    """

    peak: float
    warmup: int
    seconds: float
    decay: Schedule = "constant"

    def __call__(self, step: int, seconds: float) -> float:
        """Learning rate of a step, counted from 0, that begins at this time of the run."""
        risen = min(1.0, (step + 1) / max(1, self.warmup))
        return self.peak * risen * _decay(self.decay, self.share(step, seconds))

    def share(self, steps: int, seconds: float) -> float:
        """How much of the run is over at a time; 1 or more at its end."""
        return seconds / self.seconds


def _decay(kind: Schedule, passed: float) -> float:
    return 1.0 if kind == "constant" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
