"""Charts as inline SVG. The page's style sheet colours them, so that they follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dqcore.errors import InputError

__all__ = ["Series", "bar_chart", "line_chart"]

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 30


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: For the legend.
        points: ``(x, y)``, x rising.
        style: Class in the page's style sheet: ``"first"``, ``"second"`` or ``"faint"``.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "first"


def line_chart(series: Sequence[Series], *, label: str, target: float | None = None, log: bool = False) -> str:
    """A line chart over training steps.

    Args:
        series: Lines with at least one point altogether.
        label: What the y axis shows, with its unit.
        target: Draw a dashed line here.
        log: Logarithmic y axis; values of 0 or less are left out.

    Returns:
        An ``<svg>`` element.
    """
    drawn = [
        Series(line.name, [p for p in line.points if math.isfinite(p[1]) and (p[1] > 0 or not log)], line.style)
        for line in series
    ]
    points = [point for line in drawn for point in line.points]
    if not points:
        raise InputError("series: expected at least one point to draw")
    values = [y for _, y in points] + ([] if target is None else [target])
    axis = _Axis.around(values, log=log)
    last = max(x for x, _ in points) or 1.0
    parts = [*axis.grid(), *_step_labels(last)]
    if target is not None:
        y = axis.place(target)
        parts.append(f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for line in drawn:
        path = " ".join(f"{_across(x, last):.1f},{axis.place(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
    names = [f'<tspan class="{line.style}" dx="10">{escape(line.name)}</tspan>' for line in drawn if line.name]
    if names:
        parts.append(f'<text class="legend" x="{WIDTH - RIGHT}" y="{TOP + 4}">{"".join(names)}</text>')
    return _svg(parts, label)


def bar_chart(values: Sequence[float], *, label: str, x_label: str) -> str:
    """Bars side by side, from 0 up, in the given order; an ``<svg>`` element."""
    axis = _Axis.around([0.0, max(values, default=1.0) or 1.0])
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    bars = [
        f"M{LEFT + index * width:.2f},{axis.place(0):.1f}V{axis.place(value):.2f}h{width:.2f}V{axis.place(0):.1f}z"
        for index, value in enumerate(values)
        if value > 0
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    text = f'<text class="tick" text-anchor="middle" x="{middle}" y="{HEIGHT - 8}">{escape(x_label)}</text>'
    return _svg([*axis.grid(), f'<path class="bars" d="{"".join(bars)}"/>', text], label)


@dataclass(frozen=True)
class _Axis:
    """The y axis: its range, its ticks, and whether it is logarithmic; ``place`` gives the height of a value."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    @classmethod
    def around(cls, values: Sequence[float], *, log: bool = False) -> _Axis:
        low, high = min(values), max(values)
        if log:
            lowest = math.floor(math.log10(low))
            highest = max(math.ceil(math.log10(high)), lowest + 1)
            powers = range(lowest, highest + 1, max(1, (highest - lowest) // 4))
            return cls(10.0**lowest, 10.0**highest, tuple(10.0**power for power in powers), True)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        gap = _nice((high - low) / 4)
        first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
        return cls(first * gap, last * gap, tuple(index * gap for index in range(first, last + 1)), False)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        parts = []
        for tick in self.ticks:
            y = self.place(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{tick:.4g}</text>')
        return parts


def _nice(gap: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least ``gap``."""
    power = 10.0 ** math.floor(math.log10(gap))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= gap * (1 - 1e-9))


def _across(step: float, last: float) -> float:
    return LEFT + step / last * (WIDTH - LEFT - RIGHT)


def _step_labels(last: float) -> list[str]:
    gap = _nice(last / 4)
    ticks = [index * gap for index in range(int(last / gap + 1e-9) + 1)]
    return [
        f'<text class="tick" text-anchor="middle" x="{_across(tick, last):.1f}" y="{HEIGHT - 12}">{tick:,.4g}</text>'
        for tick in ticks
    ]


def _svg(parts: Sequence[str], label: str) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"
