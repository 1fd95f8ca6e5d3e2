"""Which charts the report of a run has, from the rows that training logged and from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dqcore.inference.compare import CurvePoint
from dqcore.inference.measure import Evaluation
from dqcore.inference.protocol import NATIVE
from dqcore.report.curves import Series, bar_chart, line_chart

__all__ = ["prior_charts", "rate_chart", "tokenizer_charts", "usage_chart"]

Chart = dict[str, str]


def tokenizer_charts(rows: Sequence[dict[str, Any]], evaluation: Evaluation, target: float | None) -> list[Chart]:
    """The charts of a tokenizer's training.

    Args:
        rows: Rows of the run's ``metrics.jsonl``.
        evaluation: Numbers measured on photos.
        target: Target share of fine regions, if there is one.

    Returns:
        ``title``, ``remark`` and ``svg`` of each. A quantity that the run never logged, or that stayed 0, has none.
    """
    reconstruction = Series("reconstruction", _points(rows, "reconstruction_loss"), "first")
    loss = [Series("all terms", _points(rows, "loss"), "faint"), reconstruction]
    charts = _chart("Loss", "of reconstruction, and of all terms, on training batches", loss, y_label="loss")
    if target is not None:
        fine = [(x, 100 * y) for x, y in _points(rows, "fine_ratio")]
        lines = [Series("batch", fine, "faint"), Series("running mean", _running_mean(fine), "first")]
        remark = f"of all regions in training; dashed: the target, {target:.0%}"
        charts += _chart("Fine regions", remark, lines, y_label="share, %", target=100 * target)
    psnr = _points(rows, "val_psnr")
    if psnr:
        remark = f"on validation images, {NATIVE}; last: {psnr[-1][1]:.2f} dB"
        charts += _chart("PSNR", remark, [Series("", psnr, "second", dots=len(psnr) < 30)], y_label="PSNR, dB")
    return [*charts, usage_chart(evaluation)]


def usage_chart(evaluation: Evaluation) -> Chart:
    """How often each code occurs."""
    counts = sorted(evaluation.code_counts, reverse=True)
    x_label = f"{len(counts)} codes, most used first"
    svg = bar_chart(counts, label="Code usage", x_label=x_label, y_label="times used")
    return {"title": "Code usage", "remark": "how often each code occurs in the photos", "svg": svg}


def rate_chart(curve: Sequence[CurvePoint], num_photos: int) -> list[Chart]:
    """Rate and distortion of the tokenizer, and of the codecs where a file of as few bytes exists for every photo."""
    if not curve:
        return []
    lines = [Series("this tokenizer", [(p.bits_per_pixel, p.psnr) for p in curve], "first", dots=True)]
    missing = []
    for index, style in enumerate(("second", "third")[: len(curve[0].peers)]):
        peers = [point.peers[index] for point in curve]
        points = sorted({(peer.bits_per_pixel, peer.psnr) for peer in peers})
        lines.append(Series(peers[0].name, points, style, dots=True))
        if peers[0].too_large:
            missing.append(peers[0].name)
    means = "one photo" if num_photos == 1 else f"means of {num_photos} photos"
    remark = f"{means} at growing shares of fine regions; bytes as written, headers included"
    if missing:
        remark += f". {' and '.join(missing)} cannot be as small as our smallest and begin at their lowest quality"
    svg = line_chart(lines, label="Rate and distortion", x_label="bits per pixel", y_label="PSNR, dB")
    return [{"title": "Rate and distortion", "remark": remark, "svg": svg}]


def prior_charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """The charts of a prior's training: its losses, and the bits that an image's codes cost under it."""
    losses = [
        Series("all terms", _points(rows, "loss"), "faint"),
        Series("codes", _points(rows, "content_loss"), "first"),
        Series("positions", _points(rows, "position_loss"), "second"),
    ]
    charts = _chart("Loss", "of training batches", losses, y_label="nats per token")
    held_out = [Series("", _points(rows, "val_bits_per_image"), "second")]
    return charts + _chart("Bits per image", "codes of validation images under the prior", held_out, y_label="bits")


def _chart(title: str, remark: str, lines: list[Series], **options: Any) -> list[Chart]:
    """The chart, or none where its quantity was never logged, stayed 0, or was never finite."""
    lines = [line for line in lines if any(y and math.isfinite(y) for _, y in line.points)]
    return [{"title": title, "remark": remark, "svg": line_chart(lines, label=title, **options)}] if lines else []


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At each point the mean over it and those before it, as many as a tenth of all points."""
    window = max(1, len(points) // 10)
    means = []
    for index, (x, _) in enumerate(points):
        recent = [y for _, y in points[max(0, index + 1 - window) : index + 1]]
        means.append((x, sum(recent) / len(recent)))
    return means
