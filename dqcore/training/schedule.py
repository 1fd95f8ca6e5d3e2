"""The learning rate as a function of the step, so that it has no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["LearningRate", "Schedule"]

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

    def __call__(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.peak
        passed = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
