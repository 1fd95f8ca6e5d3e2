"""How calls are timed: in turn, so that the machine's other work disturbs all of them alike, and in CUDA graphs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Collection

import torch

from dqcore.testing import captured

#: Calls that no graph can hold, by name, beside those that a benchmark names: ``gpu_report.py`` adds what it met.
LAUNCHED_ALONE: set[str] = set()
#: Whether calls run only to be compiled, once each; what is measured then means nothing.
REHEARSAL = False


class CannotBeCaptured(RuntimeError):
    """A call that runs, but not into a CUDA graph. What a process captures afterwards may fail too."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{name} cannot be captured in a CUDA graph: {str(error).strip().splitlines()[:1]}")
        self.name = name


def interleaved_medians(*calls: Callable[[], object], rounds: int = 15) -> list[float]:
    """Median seconds of each call, launches included; the calls take turns, and two rounds before are not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    before, rounds = (0, 1) if REHEARSAL else (2, rounds)
    for _ in range(rounds + before):
        for times, call in zip(seconds, calls, strict=True):
            times.append(_finished(call))
    return [statistics.median(times[before:]) for times in seconds]


def medians(
    calls: dict[str, Callable[[], object]],
    device: torch.device | str,
    rounds: int = 15,
    alone: Collection[str] = (),
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each call; the calls take turns.

    On a GPU the calls are replayed from CUDA graphs, so that the time of their launches is not counted.

    Args:
        calls: Names and calls. The first is ours.
        device: Where the calls run.
        rounds: Turns of each call.
        alone: Names of calls for which the host waits: no graph can hold them, so they are launched one by one.

    Returns:
        The seconds of those that run, and for each of the others why it does not.

    Raises:
        Exception: Our call, the first, does not run.
        CannotBeCaptured: A call runs, but no graph can hold it, and ``alone`` does not say so.
    """
    ready: dict[str, Callable[[], float]] = {}
    failed: dict[str, str] = {}
    on_gpu = torch.device(device).type == "cuda"
    for name, call in calls.items():
        try:
            first = _finished(call)
        except Exception as error:  # a peer's, whatever it is, costs our row nothing
            if not ready:
                raise
            failed[name] = reason(error)
            continue
        if REHEARSAL:
            ready[name] = functools.partial(float, first)
        elif on_gpu and name not in {*alone, *LAUNCHED_ALONE}:
            ready[name] = _captured(name, call)
        else:
            ready[name] = functools.partial(_finished, call)
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, run in ready.items():
            seconds[name].append(run())
    return {name: statistics.median(times) for name, times in seconds.items()}, failed


def reason(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _captured(name: str, call: Callable[[], object]) -> Callable[[], float]:
    try:
        run = replayed(call)
        run()
    except RuntimeError as error:
        raise CannotBeCaptured(name, error) from error
    return run


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


def finished_time() -> float:
    """Seconds, read when the work launched so far has ended."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _finished(call: Callable[[], object]) -> float:
    """Seconds of one call by the clock on the wall, until its result is there."""
    start = time.perf_counter()
    call()
    return finished_time() - start
