"""Running experiments: what is trained once for all, then what is measured; each piece once, in several processes."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dqcore.errors import DqcoreError
from dqcore.experiments.arms import Arm, with_needs
from dqcore.experiments.plan import Experiment
from dqcore.experiments.setting import Setting
from dqcore.experiments.train import check_same, is_trained, train_arm
from dqcore.files import write_json
from dqcore.progress import duration
from dqcore.training import NonFiniteLossError, StoppedError

__all__ = ["is_measured", "measure_arm", "run_experiments"]

Say = Callable[[str], object]
Task = tuple[Callable[..., object], tuple[Any, ...], str]


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
        DqcoreError: A loss became infinite or NaN.
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
    training = json.loads((setting.run_folder(arm) / "finished.json").read_text())
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
        InputError: It is there, but was made with other options or photos.
    """
    path = setting.result_file(experiment.name, arm)
    if not path.is_file():
        return False
    check_same(path, json.loads(path.read_text())["arm"], setting.described(arm))
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
    # A process that was forked after torch has started its threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_begin_process)
    try:
        running = {pool.submit(_in_process, function, arguments): text for function, arguments, text in tasks}
        for done, future in enumerate(concurrent.futures.as_completed(running), 1):
            future.result()
            told(done, running[future])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_parent_lost = threading.Event()


def _begin_process() -> None:
    """Prepare a process of the pool: one core, and an end of its own if the program that started it is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended; a training run saves first. Python lets such a process wait on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    _parent_lost.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _in_process(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Do a task in a process of the pool; what it raises must be readable on the other side."""
    try:
        function(*arguments)
    except StoppedError as stop:
        raise KeyboardInterrupt(str(stop)) from None
    except NonFiniteLossError as error:
        raise DqcoreError(str(error)) from None
    finally:
        if _parent_lost.is_set():  # nobody waits for what this gives
            os._exit(128 + signal.SIGTERM)
