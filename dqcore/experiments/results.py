"""The stored results of an experiment: a JSON for each arm and seed, read together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.experiments.statistics import difference, mean_curve
from dqcore.metrics.intervals import Interval, interval

__all__ = ["Results", "read_results"]


class Results:
    """What was measured, by arm and seed.

    Args:
        rows: Contents of the files, see :func:`dqcore.experiments.runner.measure_arm`.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)

    @property
    def arms(self) -> list[str]:
        """Names of the arms, each once."""
        return list(dict.fromkeys(row["arm"]["name"] for row in self.rows))

    def of(self, arm: str) -> dict[int, Any]:
        """What was measured of an arm, by seed."""
        return {row["arm"]["seed"]: row["measured"] for row in self.rows if row["arm"]["name"] == arm}

    def values(self, arm: str, *path: str) -> dict[int, float]:
        """A number of an arm by seed; seeds that lack it are left out.

        Args:
            arm: Name of the arm.
            path: Keys on the way to it.
        """
        found = {seed: _at(measured, path) for seed, measured in self.of(arm).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def interval(self, arm: str, *path: str) -> Interval:
        """Mean and interval of a number over the seeds."""
        return interval(list(self.values(arm, *path).values()))

    def difference(self, better: str, worse: str, *path: str) -> Interval:
        """Mean and interval of a number's difference between two arms, seed by seed."""
        return difference(self.values(better, *path), self.values(worse, *path))

    def curve(self, arm: str, *path: str) -> list[tuple[float, float]]:
        """Mean of an arm's curve over the seeds."""
        return mean_curve([curve for measured in self.of(arm).values() if (curve := _at(measured, path))])

    def protocol(self) -> dict[str, Any]:
        """What the numbers stand on: scale, photos, seeds, time, versions."""
        seconds = sum(row["seconds"]["training"] for row in self.rows)
        made_by = [row["made_by"] for row in self.rows]
        resumed = sum(bool(row.get("resumed")) for row in self.rows)
        return {
            "scale": sorted({row["arm"]["scale"] for row in self.rows}),
            "photos": sorted({row["photos"] for row in self.rows}),
            "data hash": sorted({row["arm"]["data"] for row in self.rows}),
            "seeds": sorted({row["arm"]["seed"] for row in self.rows}),
            "steps": sorted({_length(row["arm"]["options"]) for row in self.rows}),
            "minutes of training": round(seconds / 60, 1),
            **({"interrupted runs, of which only the last part counts": resumed} if resumed else {}),
            **{name: sorted({str(each.get(name)) for each in made_by}) for name in (made_by[0] if made_by else ())},
        }


def read_results(folder: Path) -> Results:
    """The results in a folder.

    Raises:
        InputError: A file is no result.
    """
    rows = []
    for path in sorted(folder.glob("*-seed*.json")):
        try:
            row = json.loads(path.read_text(), parse_constant=_refuse)
            _check(row)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"out: {path} is no result of an arm ({error!r}); remove it, or measure again") from error
        rows.append(row)
    return Results(rows)


def _check(row: Any) -> None:
    """Raise an error of Python unless a row has what :class:`Results` reads beside what was measured."""
    arm, seconds = row["arm"], row["seconds"]["training"]
    expected = {str: (arm["name"], arm["scale"], arm["data"], row["photos"]), int: (arm["seed"],)}
    expected |= {dict: (arm["options"], row["made_by"], row["measured"])}
    for kind, values in expected.items():
        for value in values:
            if not isinstance(value, kind):
                raise TypeError(f"expected a value of kind {kind.__name__}, got {value!r}")
    if not seconds >= 0:
        raise ValueError(f"expected seconds, got {seconds!r}")


def _refuse(constant: str) -> Any:
    """NaN and infinities are no JSON, and no mean can be taken of them."""
    raise ValueError(f"expected numbers, got {constant}")


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _length(options: dict[str, Any]) -> str:
    return f"{options['minutes']:g} minutes" if "minutes" in options else f"{options.get('steps')} steps"
