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


def write_summary(experiment: Experiment, out: Path) -> dict[str, Any] | None:
    """Sum up the stored results of an experiment, and write ``summary.json`` beside them; None without results."""
    results = read_results(out / experiment.name)
    if not results.rows:
        return None
    found = experiment.summarise(results) | {"name": experiment.name, "protocol": results.protocol()}
    write_json(out / experiment.name / "summary.json", found)
    return found


def read_summaries(experiments: Mapping[str, Experiment], out: Path) -> list[dict[str, Any]]:
    """The summaries of all experiments with results in a folder, then that of the headline results.

    Raises:
        InputError: There are no results.
    """
    found = [summary for experiment in experiments.values() if (summary := write_summary(experiment, out))]
    if not found:
        raise InputError(f"out: {out} holds no results; dqcore reproduce all makes them")
    return [*found, headline.summarise() | {"name": "headline", "protocol": {}}]
