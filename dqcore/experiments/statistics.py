"""Differences seed by seed, and curves averaged over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from dqcore.metrics.intervals import Interval, interval

__all__ = ["difference", "mean_curve"]

Points = Sequence[Sequence[float]]


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
