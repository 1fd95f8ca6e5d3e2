"""Two results on the same photos, side by side: the differences photo by photo, with 95 % intervals.

Photos differ from each other by far more than tokenizers do. The interval of the paired differences leaves that out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.files.sealed import read_sealed
from dqcore.inference.protocol import check_same_protocol, said_otherwise
from dqcore.metrics.intervals import Interval, interval

__all__ = ["Paired", "compare_results", "in_columns", "paired_notes", "read_result"]

#: What is compared: name in a result, name for people, unit, digits.
QUANTITIES = (
    ("psnr", "PSNR", "dB", 3),
    ("ssim", "SSIM", "", 5),
    ("ms_ssim", "MS-SSIM", "", 5),
    ("lpips", "LPIPS", "", 5),
    ("bits_per_pixel", "bits per pixel, mean of photos", "", 5),
)


def in_columns(a: str, b: str, difference: str) -> str:
    """A line of the table of two results."""
    return f"{a:<8}  {b:<8}  {difference}"


@dataclass(frozen=True)
class Paired:
    """A quantity of two results on the same photos.

    Attributes:
        name: For people.
        unit: Such as dB; empty for none.
        digits: To print.
        a: Mean over photos of the first.
        b: Mean over photos of the second.
        difference: Mean of ``a - b``, photo by photo, and its interval.
    """

    name: str
    unit: str
    digits: int
    a: float
    b: float
    difference: Interval

    @property
    def text(self) -> str:
        """Such as ``"28.412    28.001    +0.411 ± 0.120 dB"``: three columns of :func:`in_columns`."""
        difference = self.difference.text(self.digits, self.unit, sign=True)
        return in_columns(f"{self.a:.{self.digits}f}", f"{self.b:.{self.digits}f}", difference)

    def as_json(self) -> dict[str, Any]:
        """As plain values; an interval of one photo is null."""
        half = self.difference.half if math.isfinite(self.difference.half) else None
        return {"a": self.a, "b": self.b, "difference": self.difference.mean, "half": half}


def compare_results(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Paired]:
    """Compare two results of ``dqcore evaluate``.

    Args:
        a: A result, see :meth:`dqcore.inference.evaluate.PhotoEvaluation.as_json`.
        b: Another.

    Returns:
        What both have of every photo, by its name in them. LPIPS is left out where the networks differ.

    Raises:
        InputError: They were not measured on the same photos in the same way.
    """
    check_same_protocol(a["measured"], b["measured"])
    networks = said_otherwise(a["measured"], b["measured"], ("lpips network",))
    found = {}
    for key, name, unit, digits in QUANTITIES:
        x, y = a["each"][key], b["each"][key]
        if None in (*x, *y) or (key == "lpips" and networks):
            continue
        pairs = interval([p - q for p, q in zip(x, y, strict=True)])
        found[key] = Paired(name, unit, digits, statistics.fmean(x), statistics.fmean(y), pairs)
    return found


def paired_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What else is not the same of two results, though they may be compared."""
    return said_otherwise(a["measured"], b["measured"], ("lpips network", "versions", "ratio", "num codes"))


def read_result(path: Path) -> dict[str, Any]:
    """A result that ``dqcore evaluate --json`` wrote.

    Raises:
        InputError: The file is none, or one without numbers of each photo.
    """
    try:
        found: dict[str, Any] = read_sealed(path)
        counts = {len(found["each"][key]) for key, *_ in QUANTITIES}
        _ = found["measured"]["protocol"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"compare: {path} is no result of dqcore evaluate --json ({error!r})") from error
    if counts != {found["measured"].get("images")}:
        raise InputError(f"compare: {path} is damaged, its numbers of photos do not agree")
    return found
