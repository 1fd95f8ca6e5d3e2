"""Summaries on disk: ``summary.json`` beside an experiment's results, made anew from them whenever they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.experiments import headline
from dqcore.experiments.plan import Experiment
from dqcore.experiments.results import read_results
from dqcore.files import write_json

__all__ = ["read_summaries", "write_summary"]

#: What all results of an experiment must have in common.
MUST_AGREE = ("scale", "photos", "data hash")


def write_summary(experiment: Experiment, out: Path) -> dict[str, Any] | None:
    """Sum up the stored results of an experiment, and write ``summary.json`` beside them; None without results."""
    results = read_results(out / experiment.name)
    if not results.rows:
        return None
    protocol = results.protocol()
    found = experiment.summarise(results) | {"name": experiment.name, "protocol": protocol}
    found["notes"] = [*_unlike(protocol), *found["notes"]]
    write_json(out / experiment.name / "summary.json", found)
    return found


def _unlike(protocol: Mapping[str, Any]) -> list[str]:
    """A note where results stand side by side that were not measured alike."""
    parts = [f"{name} {', '.join(map(str, protocol[name]))}" for name in MUST_AGREE if len(protocol[name]) > 1]
    return [f"**These results were not measured alike and cannot be compared: {'; '.join(parts)}.**"] if parts else []


def read_summaries(experiments: Mapping[str, Experiment], out: Path) -> list[dict[str, Any]]:
    """The summaries of all experiments with results in a folder, then that of the headline results.

    Raises:
        InputError: There are no results.
    """
    found = [summary for experiment in experiments.values() if (summary := write_summary(experiment, out))]
    if not found:
        raise InputError(f"out: {out} holds no results; dqcore reproduce all makes them")
    return [*found, headline.summarise() | {"name": "headline", "protocol": {}}]
