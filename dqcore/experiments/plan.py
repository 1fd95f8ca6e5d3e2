"""What will be trained and measured, and how long that should take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dqcore.experiments.arms import Arm, with_needs
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.train import is_trained
from dqcore.progress import duration

__all__ = ["Experiment", "say_plan"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: a file of this folder.

    Attributes:
        name: Its name on the command line.
        arms: The arms, for a scale and a number of seeds.
        measure: What is measured of a trained arm, as plain values.
        summarise: What the results come to, see :func:`dqcore.experiments.summary.summary`.
    """

    name: str
    arms: Callable[[Scale, int], list[Arm]]
    measure: Callable[[Arm, Setting], dict[str, Any]]
    summarise: Callable[[Results], dict[str, Any]]


def say_plan(experiments: Sequence[Experiment], setting: Setting, seeds: int, jobs: int) -> list[str]:
    """A line for each experiment, and one for all: arms to train and to measure, and the time that they should take.

    A run that two experiments share is counted for the first. The times are those of the scale, or the minutes that
    were asked for; the lines while it runs tell those of this machine.
    """
    seconds, counted = dict(setting.scale.seconds), set[str]()
    lines: list[str] = []
    if setting.minutes is not None:
        seconds |= {"tokenizer": 60 * setting.minutes, "prior": 60 * setting.minutes}
    whole = 0.0
    for experiment in experiments:
        arms = experiment.arms(setting.scale, seeds)
        runs = [arm for arm in with_needs(arms) if arm.key not in counted and not is_trained(arm, setting)]
        counted |= {arm.key for arm in runs}
        left = [arm for arm in arms if not setting.result_file(experiment.name, arm).is_file()]
        time = sum(seconds[arm.kind] for arm in runs) + seconds["measure"] * len(left)
        whole += time
        what = f"{len(runs)} runs to train, {len(left)} of {len(arms)} arms to measure"
        lines.append(f"{experiment.name:<10}{what}, about {duration(time / jobs)}")
    lines.append(f"{'all':<10}about {duration(whole / jobs)} with {jobs} at once; {setting.photos.name}")
    return lines
