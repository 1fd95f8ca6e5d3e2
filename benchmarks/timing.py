"""How calls are timed: in turn, so that the machine's other work disturbs all of them alike, and in CUDA graphs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from dqcore.testing import captured


def interleaved_medians(*calls: Callable[[], object], rounds: int = 15) -> list[float]:
    """Median seconds of each call, launches included; the calls take turns, and two rounds before are not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 2):
        for times, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[2:]) for times in seconds]


def medians(
    calls: dict[str, Callable[[], object]], device: torch.device | str, rounds: int = 15
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each call; the calls take turns.

    On a GPU the calls are replayed from CUDA graphs, so that the time of their launches is not counted.

    Args:
        calls: Names and calls. The first is ours.
        device: Where the calls run.
        rounds: Turns of each call.

    Returns:
        The seconds of those that run, and for each of the others why it does not.

    Raises:
        RuntimeError: Our call, the first, does not run.
    """
    ready: dict[str, Callable[[], float]] = {}
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            run = replayed(call) if torch.device(device).type == "cuda" else functools.partial(_timed, call)
            run()
            ready[name] = run
        except RuntimeError as error:
            if not ready:
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, run in ready.items():
            seconds[name].append(run())
    return {name: statistics.median(times) for name, times in seconds.items()}, failed


def replayed(call: Callable[[], object], repeats: int = 10) -> Callable[[], float]:
    """Capture ``repeats`` calls in a CUDA graph; returns a function that replays it and gives the seconds of a call."""
    graph, _ = captured(call, repeats)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats

    return run


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
