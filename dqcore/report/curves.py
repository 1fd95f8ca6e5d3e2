"""Charts as inline SVG. The page's style sheet colours them, so that they follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from dqcore.errors import InputError
from dqcore.report.axis import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, nice_gap, tick_text

__all__ = ["Series", "bar_chart", "line_chart"]

_DIGIT = 7  # width of a digit, at most


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: For the legend.
        points: ``(x, y)``, x rising.
        style: Class in the page's style sheet: ``"first"``, ``"second"``, ``"third"`` or ``"faint"``.
        dots: Draw a dot at each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "first"
    dots: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str = "training step",
    y_label: str = "",
    target: float | None = None,
    log: bool = False,
) -> str:
    """A line chart; its x axis begins at 0.

    Args:
        series: Lines with at least one point altogether.
        label: What the chart shows, for people who hear it.
        x_label: Name of the x axis, with its unit.
        y_label: Name of the y axis, with its unit.
        target: Draw a dashed line here.
        log: Logarithmic y axis; values of 0 or less are left out.

    Returns:
        An ``<svg>`` element.
    """
    drawn = [
        replace(line, points=[p for p in line.points if math.isfinite(p[1]) and (p[1] > 0 or not log)])
        for line in series
    ]
    points = [point for line in drawn for point in line.points]
    if not points:
        raise InputError("series: expected at least one point to draw")
    axis = Axis.around([y for _, y in points] + ([] if target is None else [target]), log=log)
    last = max(x for x, _ in points) or 1.0
    parts = [*axis.grid(), *_x_ticks(last)]
    if target is not None:
        y = axis.place(target)
        parts.append(f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for line in drawn:
        parts += _line(line, axis, last)
    return _svg([*parts, *_names(x_label, y_label), *_legend(drawn)], label)


def bar_chart(values: Sequence[float], *, label: str, x_label: str, y_label: str = "") -> str:
    """Bars side by side, from 0 up, in the given order; an ``<svg>`` element."""
    axis = Axis.around([0.0, max(values, default=1.0) or 1.0])
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    bars = [
        f"M{LEFT + index * width:.2f},{axis.place(0):.1f}V{axis.place(value):.2f}h{width:.2f}V{axis.place(0):.1f}z"
        for index, value in enumerate(values)
        if value > 0
    ]
    path = f'<path class="bars" d="{"".join(bars)}"/>'
    return _svg([*axis.grid(), path, *_names(x_label, y_label)], label)


def _line(line: Series, axis: Axis, last: float) -> list[str]:
    places = [(_across(x, last), axis.place(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="{line.style}" points="{path}"/>']
    if line.dots:
        parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in places]
    return parts


def _legend(lines: Sequence[Series]) -> list[str]:
    names = [f'<tspan class="{line.style}" dx="10">{escape(line.name)}</tspan>' for line in lines if line.name]
    return [f'<text class="legend" x="{WIDTH - RIGHT}" y="{TOP - 10}">{"".join(names)}</text>'] if names else []


def _names(x_label: str, y_label: str) -> list[str]:
    """The names of the axes: below the middle of one, above the other."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [f'<text class="axis" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{escape(x_label)}</text>']
    if y_label:
        parts.append(f'<text class="axis" x="4" y="{TOP - 10}">{escape(y_label)}</text>')
    return parts


def _across(x: float, last: float) -> float:
    return LEFT + x / last * (WIDTH - LEFT - RIGHT)


def _x_ticks(last: float) -> list[str]:
    gap = nice_gap(last / 4, last)
    return [_x_tick(index * gap, last) for index in range(int(last / gap + 1e-9) + 1)]


def _x_tick(tick: float, last: float) -> str:
    """A number below its place on the x axis; one that would not fit ends at the chart's edge."""
    x, text = _across(tick, last), tick_text(tick)
    anchor, x = ("middle", x) if x + _DIGIT / 2 * len(text) <= WIDTH else ("end", WIDTH - 1.0)
    return f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{text}</text>'


def _svg(parts: Sequence[str], label: str) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"
