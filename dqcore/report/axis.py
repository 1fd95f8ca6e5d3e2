"""The y axis of a chart, and the sizes that all charts share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "Axis", "nice_gap", "tick_text"]

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 28, 42


@dataclass(frozen=True)
class Axis:
    """The y axis: its range, its ticks, and whether it is logarithmic; ``place`` gives the height of a value."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    @classmethod
    def around(cls, values: Sequence[float], *, log: bool = False) -> Axis:
        """An axis with round ticks that holds all values."""
        low, high = min(values), max(values)
        if log:
            lowest = math.floor(math.log10(low))
            highest = max(math.ceil(math.log10(high)), lowest + 1)
            powers = range(lowest, highest + 1, max(1, (highest - lowest) // 4))
            return cls(10.0**lowest, 10.0**highest, tuple(10.0**power for power in powers), True)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        gap = nice_gap((high - low) / 4, max(abs(low), abs(high)))
        first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
        return cls(first * gap, last * gap, tuple(index * gap for index in range(first, last + 1)), False)

    def place(self, value: float) -> float:
        """Pixels from the chart's upper edge."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        """Lines across the chart with their numbers, as SVG elements."""
        parts = []
        for tick in self.ticks:
            y = self.place(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            text = tick_text(tick)
            parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>')
        return parts


def tick_text(tick: float) -> str:
    """A number beside an axis, in four digits or whole: ``"0.25"``, ``"1,000"``, ``"-12,500"``."""
    return f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:.4g}"


def nice_gap(gap: float, largest: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least ``gap``.

    Nor is it smaller than what :func:`tick_text` can tell apart where ticks reach to ``largest``: every number beside
    an axis is that of its line.
    """
    last_digit = 1.0 if largest >= 1000 else 10.0 ** (math.floor(math.log10(largest)) - 3) if largest else 0.0
    gap = max(gap, last_digit)
    power = 10.0 ** math.floor(math.log10(gap) + 1e-9)
    factors = (1, 2, 2.5, 5, 10) if power > 2 * last_digit else (1, 2, 5, 10)
    return next(factor * power for factor in factors if factor * power >= gap * (1 - 1e-9))
