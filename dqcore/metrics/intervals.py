"""Means of independent values with 95 % confidence intervals by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["T_95", "Interval", "interval"]

#: Quantiles of Student's t at 0.975 for 1 to 30 degrees of freedom. For more, the last makes intervals a bit too wide.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: Of all values; NaN without any.
        half: Half of the interval's width; infinite for fewer than two values.
        count: Values.
    """

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def text(self, digits: int = 2, unit: str = "", sign: bool = False) -> str:
        """Such as ``"22.31 ± 0.12 dB"``; without an interval the mean alone, without values a dash."""
        if not self.count:
            return "-"
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        spread = f" ± {self.half:.{digits}f}" if math.isfinite(self.half) else ""
        return f"{mean}{spread}{' ' if unit else ''}{unit}"


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, and the interval that holds the true mean in 95 of 100 cases."""
    count = len(values)
    if not count:
        return Interval(math.nan, math.inf, 0)
    mean = statistics.fmean(values)
    if count == 1:
        return Interval(mean, math.inf, 1)
    quantile = T_95[min(count - 1, len(T_95)) - 1]
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)
