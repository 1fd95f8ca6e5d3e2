"""Running experiments: what is trained once for all, then what is measured; each piece once, in several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from dqcore.experiments.arms import Arm, with_needs
from dqcore.experiments.plan import Experiment
from dqcore.experiments.setting import Setting
from dqcore.experiments.train import FINISHED, check_same, is_trained, read_notes, train_arm
from dqcore.experiments.workers import Task, do_in_processes
from dqcore.files import write_json
from dqcore.progress import duration

__all__ = ["is_measured", "measure_arm", "run_experiments"]

Say = Callable[[str], object]


def run_experiments(
    experiments: Sequence[Experiment], setting: Setting, seeds: int, *, jobs: int = 1, say: Say = print
) -> None:
    """Train and measure every arm that is not there yet.

    A finished arm is not run again, and one that was killed goes on from its checkpoint. Tokenizers come first, then
    priors, then the measurements.

    Args:
        experiments: Which ones.
        setting: Where, on what, at which scale.
        seeds: Seeds of each arm.
        jobs: Processes at work at once, each on one core; 1 works in this one.
        say: Called with a line after each piece.

    Raises:
        InputError: The folder holds results with other options or photos.
        KeyboardInterrupt: A signal came; what was under way can be resumed.
        DqcoreError: A loss became infinite or NaN, or a process was killed.
    """
    arms = {experiment.name: experiment.arms(setting.scale, seeds) for experiment in experiments}
    wanted = [arm for each in arms.values() for arm in each]
    missing = [arm for arm in with_needs(wanted) if not is_trained(arm, setting)]
    for kind in ("tokenizer", "prior"):
        tasks: list[Task] = [(train_arm, (arm, setting), f"trained {arm.key}") for arm in missing if arm.kind == kind]
        _work(tasks, jobs, say)
    tasks = [
        (measure_arm, (experiment, arm, setting), f"measured {arm.key} for {experiment.name}")
        for experiment in experiments
        for arm in arms[experiment.name]
        if not is_measured(experiment, arm, setting)
    ]
    _work(tasks, jobs, say)


def measure_arm(experiment: Experiment, arm: Arm, setting: Setting) -> None:
    """Measure a trained arm, and write its JSON.

    The file says what was measured, and by what: ``arm``, ``photos``, ``made_by``, ``seconds`` and ``measured``.
    """
    start = time.perf_counter()
    measured = experiment.measure(arm, setting)
    training = read_notes(setting.run_folder(arm) / FINISHED, made_by=dict, seconds=float, resumed=bool)
    result = {
        "experiment": experiment.name,
        "arm": setting.described(arm),
        "photos": setting.photos.name,
        "made_by": training["made_by"] | {"threads": torch.get_num_threads()},
        "seconds": {"training": training["seconds"], "measuring": time.perf_counter() - start},
        "resumed": training["resumed"],
        "measured": measured,
    }
    write_json(setting.result_file(experiment.name, arm), result)


def is_measured(experiment: Experiment, arm: Arm, setting: Setting) -> bool:
    """Whether the arm's JSON is there.

    Raises:
        InputError: It is there, but was made with other options or photos, or is damaged.
    """
    path = setting.result_file(experiment.name, arm)
    if not path.is_file():
        return False
    check_same(path, read_notes(path)["arm"], setting.described(arm))
    return True


def _work(tasks: Sequence[Task], jobs: int, say: Say) -> None:
    """Do tasks, ``jobs`` at once, on one core each."""
    start = time.perf_counter()

    def told(done: int, text: str) -> None:
        left = (time.perf_counter() - start) / done * (len(tasks) - done)
        say(f"{text} ({done} of {len(tasks)}" + (f", about {duration(left)} more)" if done < len(tasks) else ")"))

    if jobs == 1 or len(tasks) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for done, (function, arguments, text) in enumerate(tasks, 1):
                function(*arguments)
                told(done, text)
        finally:
            torch.set_num_threads(threads)
        return
    do_in_processes(tasks, jobs, told)
