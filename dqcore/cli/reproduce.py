"""``dqcore reproduce``: measure the paper's tables and figures, and write the page of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional

from dqcore.backends import this_machine
from dqcore.cli.idle import note_idle
from dqcore.errors import InputError, at_least
from dqcore.experiments import (
    EXPERIMENTS,
    SCALES,
    Setting,
    find_photos,
    headline,
    read_summaries,
    run_experiments,
    say_plan,
    versions,
    write_summary,
)
from dqcore.files import sole_owner, write_json
from dqcore.printing import say, typed
from dqcore.report.results import write_results
from dqcore.training.record import check_outside

__all__ = ["reproduce"]

Name = Literal["all", "budget", "ratios", "maps", "router", "learning", "priors", "layers", "headline", "report"]


def reproduce(
    name: Annotated[Name, Positional],
    *,
    scale: Literal["cpu", "gpu"] = "cpu",
    out: Path = Path("runs/reproduce"),
    data: Path | None = None,
    test: Path | None = None,
    seeds: int = 3,
    minutes_per_run: float | None = None,
    jobs: int | None = None,
    page: Path = Path("docs/results.md"),
) -> None:
    """Measure what the paper claims, and say of each claim whether it holds.

    An experiment trains small networks and measures them on photos at their native size. It may be stopped at any time
    and goes on when the command is given again; a finished arm is not run again. ``report`` writes the page of results
    from what is stored in ``out``, ``headline`` prints what the paper's own results would take, and trains nothing.

    Args:
        name: The experiment, all of them, or report.
        scale: cpu: all in 90 minutes on two cores; gpu: larger networks, each run below nine minutes.
        out: Folder of the results: a JSON for each arm and seed, and the trained models.
        data: Folder of photos with train/ and val/; by default those that come with the package.
        test: Folder, .txt list or archive of photos that everything is measured on, none of them in train/; by
            default those of val/.
        seeds: Seeds of each arm; below 3 nothing is said about claims.
        minutes_per_run: Train each arm this long by the clock, instead of the scale's number of steps.
        jobs: Arms at once, in processes of their own; by default one for each core, and one on a GPU.
        page: With report: the Markdown file, whose charts lie in a folder of its name.
    """
    _note_idle(name)
    if name == "report":
        say(write_results(read_summaries(EXPERIMENTS, out), page))
        return
    if name == "headline":
        _print_headline(out)
        return
    _check(scale, seeds, minutes_per_run, jobs)
    for folder in (data and data / "train", data and data / "val", test):
        check_outside(out, folder)
    chosen = list(EXPERIMENTS.values()) if name == "all" else [EXPERIMENTS[name]]
    photos = find_photos(data, test, SCALES[scale])
    setting = Setting(SCALES[scale], photos, out, minutes_per_run, versions())
    at_once = jobs or (1 if scale == "gpu" else this_machine(torch.device("cpu")).cores)
    _say(say_plan(chosen, setting, seeds, at_once))
    with sole_owner(out, "reproducing"):
        run_experiments(chosen, setting, seeds, jobs=at_once, say=say)
    for experiment in chosen:
        summary = write_summary(experiment, out)
        if summary is not None:
            _say(["", summary["title"], *(claim["sentence"] for claim in summary["claims"])])
    if name == "all":
        _print_headline(out)
    say()
    say(f"results in {out}; dqcore reproduce report --out {typed(str(out))} writes the page")


def _note_idle(name: str) -> None:
    """Say which of the named options this experiment does not look at."""
    reasons = {} if name == "report" else {"page": "it is for report"}
    if name in ("report", "headline"):
        options = ("scale", "data", "test", "seeds", "minutes_per_run", "jobs")
        reasons |= dict.fromkeys(options, f"{name} trains and measures nothing")
    note_idle(reasons)


def _print_headline(out: Path) -> None:
    found = headline.summarise()
    write_json(out / "headline" / "summary.json", found)
    (hours,) = found["tables"]
    _say([found["title"], *found["notes"], ""])
    for row in (hours["columns"], *hours["rows"]):
        say("  ".join(f"{cell:<22}" for cell in row).rstrip())


def _check(scale: str, seeds: int, minutes: float | None, jobs: int | None) -> None:
    """Refuse what cannot run, before anything is read."""
    at_least(1, seeds=seeds, jobs=jobs)
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"minutes_per_run: expected more than 0, got {minutes}")
    if scale == "gpu" and not torch.cuda.is_available():
        raise InputError("scale: gpu needs a CUDA device, and there is none; expected cpu")


def _say(lines: Sequence[Any]) -> None:
    for line in lines:
        say(line)
