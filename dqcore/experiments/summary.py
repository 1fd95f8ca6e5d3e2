"""What an experiment comes to, as plain values that the report draws: claims, tables, charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dqcore.experiments.claims import Claim

__all__ = ["chart", "series", "summary", "table"]


def summary(
    title: str,
    claims: Sequence[Claim],
    tables: Sequence[dict[str, Any]] = (),
    charts: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The parts of an experiment's section in the report; notes are sentences above its tables."""
    return {
        "title": title,
        "notes": list(notes),
        "claims": [claim.as_json() | {"sentence": claim.sentence()} for claim in claims],
        "tables": list(tables),
        "charts": [chart for chart in charts if chart["series"]],
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A table of text; its first column names the rows."""
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def series(
    name: str, points: Sequence[tuple[float, float]], style: str = "first", dots: bool = False
) -> dict[str, Any]:
    """A line of a chart; styles are those of :class:`dqcore.report.curves.Series`."""
    return {"name": name, "points": [list(point) for point in sorted(points)], "style": style, "dots": dots}


def chart(
    name: str,
    title: str,
    lines: Sequence[dict[str, Any]],
    *,
    x_label: str = "training step",
    y_label: str = "",
    target: float | None = None,
    log: bool = False,
) -> dict[str, Any]:
    """A chart; lines without points are left out.

    Args:
        name: Name of its file.
        title: Its heading.
        lines: What :func:`series` returns.
        x_label: Name of the x axis, with its unit.
        y_label: Name of the y axis, with its unit.
        target: Draw a dashed line here.
        log: Logarithmic y axis.
    """
    drawn = [line for line in lines if line["points"]]
    about = {"name": name, "title": title, "x_label": x_label, "y_label": y_label, "target": target, "log": log}
    return about | {"series": drawn}
