"""The stored results of an experiment: a JSON for each arm and seed, read together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.experiments.statistics import difference, mean_curve
from dqcore.metrics.intervals import Interval, interval

__all__ = ["Results", "read_results"]

#: What :class:`Results` reads of a row beside what was measured.
_FIELDS: dict[str, type | None] = {
    "arm.name": str,
    "arm.seed": int,
    "arm.scale": str,
    "arm.data": str,
    "arm.options": dict,
    "photos": str,
    "made_by": dict,
    "measured": dict,
    "seconds.training": None,
}
_KINDS: dict[type | None, str] = {str: "text", int: "a whole number", dict: "an object", None: "a number"}
#: Numbers that are more than 0, whatever was measured.
_AMOUNTS = frozenset({"bits", "bits_per_pixel", "codes_per_image", "images_per_second", "num_images", "parameters"})
_LARGEST = 1e100  # sums of such numbers are finite


class Results:
    """What was measured, by arm and seed.

    Args:
        rows: Contents of the files, see :func:`dqcore.experiments.runner.measure_arm`.
        files: The files, for messages.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], files: Sequence[Path] = ()) -> None:
        self.rows = list(rows)
        self._files = [str(file) for file in files] or [f"{_key(row)}.json" for row in self.rows]

    @property
    def arms(self) -> list[str]:
        """Names of the arms, each once."""
        return list(dict.fromkeys(row["arm"]["name"] for row in self.rows))

    def values(self, arm: str, *path: str) -> dict[int, float]:
        """A number of an arm by seed; seeds that lack it are left out.

        Args:
            arm: Name of the arm.
            path: Keys on the way to it.

        Raises:
            InputError: A file has something else there.
        """
        return self._found(_amount if path[-1] in _AMOUNTS else _number, arm, path)

    def _found(self, read: Callable[[Any], Any], arm: str, path: Sequence[str]) -> dict[int, Any]:
        found = {}
        for row, file in zip(self.rows, self._files, strict=True):
            if row["arm"]["name"] == arm:
                try:
                    value = read(_at(row["measured"], path))
                except ValueError as error:
                    raise _no_result(file, f"measured.{'.'.join(path)}: {error}") from error
                if value is not None:
                    found[row["arm"]["seed"]] = value
        return found

    def interval(self, arm: str, *path: str) -> Interval:
        """Mean and interval of a number over the seeds."""
        return interval(list(self.values(arm, *path).values()))

    def difference(self, better: str, worse: str, *path: str) -> Interval:
        """Mean and interval of a number's difference between two arms, seed by seed."""
        return difference(self.values(better, *path), self.values(worse, *path))

    def curve(self, arm: str, *path: str) -> list[tuple[float, float]]:
        """Mean of an arm's curve over the seeds."""
        return mean_curve(list(self._found(_curve, arm, path).values()))

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
    files, rows = sorted(folder.glob("*-seed*.json")), []
    for file in files:
        try:
            row = json.loads(file.read_text())
            _check(row, file.stem)
        except (ValueError, RecursionError) as error:
            raise _no_result(file, str(error)) from error
        rows.append(row)
    return Results(rows, files)


def _check(row: Any, key: str) -> None:
    """Raise ValueError unless a row has what :class:`Results` reads beside what was measured."""
    for place, kind in _FIELDS.items():
        try:
            value = _at(row, place.split("."))
            if _number(value) is None if kind is None else not isinstance(value, kind) or isinstance(value, bool):
                raise _expected(_KINDS[kind], value)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if row["seconds"]["training"] < 0:
        raise ValueError(f"seconds.training: expected at least 0, got {row['seconds']['training']}")
    if _key(row) != key:
        raise ValueError(f"arm.name and arm.seed: expected those of the file's name, got {_key(row)}")
    minutes = row["arm"]["options"].get("minutes", 1)
    if not _is_number(minutes):
        raise ValueError(f"arm.options.minutes: expected a number, got {minutes!r}")
    for place, value in _leaves(row):
        if isinstance(value, float) and not _is_number(value):
            raise ValueError(f"{place}: expected a number, got {value}")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What objects and lists hold, and where."""
    if not isinstance(value, dict | list):
        yield place, value
        return
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(part, f"{place}.{name}" if place else str(name))


def _key(row: dict[str, Any]) -> str:
    """The name of a row's file, without ending; see :attr:`dqcore.experiments.arms.Arm.key`."""
    return f"{row['arm']['name']}-seed{row['arm']['seed']}"


def _no_result(file: object, reason: str) -> InputError:
    return InputError(f"out: {file} is no result of an arm ({reason}); remove it, or measure again")


def _expected(what: str, value: Any) -> ValueError:
    return ValueError(f"expected {what}, got {'nothing' if value is None else f'{value!r:.60}'}")


def _at(value: Any, path: Sequence[str]) -> Any:
    """What lies at the end of a path of keys; None where there is nothing."""
    for name in path:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _expected("an object on the way", value)
        value = value.get(name)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _number(value: Any) -> Any:
    if value is not None and not _is_number(value):
        raise _expected("a number", value)
    return value


def _amount(value: Any) -> Any:
    if _number(value) is not None and value <= 0:
        raise _expected("a number above 0", value)
    return value


def _curve(value: Any) -> Any:
    """Points ``(x, y)``; None for a curve without any."""
    good = value is None or isinstance(value, list)
    if not good or any(not isinstance(p, list) or len(p) != 2 or not all(map(_is_number, p)) for p in value or ()):
        raise _expected("a list of points of two numbers", value)
    return value or None


def _length(options: dict[str, Any]) -> str:
    return f"{options['minutes']:g} minutes" if "minutes" in options else f"{options.get('steps')} steps"
