"""Means over seeds with intervals by Student's t, and curves averaged over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["T_95", "Interval", "difference", "interval", "mean_curve"]

#: Quantiles of Student's t at 0.975 for 1 to 30 degrees of freedom; beyond, the last is used, a little too wide.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Points = Sequence[Sequence[float]]


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


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """Mean of ``a - b`` over the seeds that both have: arms of one seed see the same crops in the same order."""
    return interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def mean_curve(curves: Sequence[Points]) -> list[tuple[float, float]]:
    """Mean of curves of points ``(x, y)``, at each x that all of them have."""
    tables = [{x: y for x, y in curve} for curve in curves]
    if not tables:
        return []
    common = set(tables[0]).intersection(*tables[1:])
    return [(x, statistics.fmean([table[x] for table in tables])) for x in sorted(common)]
