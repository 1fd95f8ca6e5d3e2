"""Which charts the report of a run has, from the rows that training logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dqcore.inference.measure import Evaluation
from dqcore.report.curves import Series, bar_chart, line_chart

__all__ = ["run_charts"]


def run_charts(rows: Sequence[dict[str, Any]], evaluation: Evaluation, target: float | None) -> list[dict[str, str]]:
    """The charts of a run's report.

    Args:
        rows: Rows of the run's ``metrics.jsonl``.
        evaluation: Numbers measured on the held-out images.
        target: Target share of fine regions, if there is one.

    Returns:
        ``title``, ``remark`` and ``svg`` of each. A quantity that the run never logged, or that stayed 0, has none.
    """

    def points(name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    charts = []

    def add(title: str, remark: str, lines: list[Series], **options: Any) -> None:
        lines = [line for line in lines if any(y for _, y in line.points)]
        if lines:
            charts.append({"title": title, "remark": remark, "svg": line_chart(lines, label=title, **options)})

    reconstruction = Series("reconstruction (L1)", points("reconstruction_loss"), "first")
    add("Loss", "of training batches", [Series("all terms", points("loss"), "faint"), reconstruction])
    if target is not None:
        fine = points("fine_ratio")
        mean = _running_mean(fine)
        lines = [Series("batch", fine, "faint"), Series("running mean", mean, "first")]
        add("Fine regions", "share of regions in training; dashed: the target", lines, target=target)
        if any(y for _, y in points("budget_loss")):
            budget = points("budget_loss")
            add("Budget loss", "weighted squared distance from the target", [Series("", budget)], log=True)
        else:
            error = [(x, (y - target) ** 2) for x, y in mean]
            add("Budget error", "squared distance of the running mean from the target", [Series("", error)], log=True)
    add("PSNR", "on centre crops of held-out images, dB", [Series("", points("val_psnr"), "second")])
    counts = sorted(evaluation.code_counts, reverse=True)
    svg = bar_chart(counts, label="Code usage", x_label=f"{len(counts)} codes, most used first")
    charts.append({"title": "Code usage", "remark": "how often each code occurs in the held-out images", "svg": svg})
    return charts


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At each point the mean over it and those before it, as many as a tenth of all points."""
    window = max(1, len(points) // 10)
    means = []
    for index, (x, _) in enumerate(points):
        recent = [y for _, y in points[max(0, index + 1 - window) : index + 1]]
        means.append((x, sum(recent) / len(recent)))
    return means
