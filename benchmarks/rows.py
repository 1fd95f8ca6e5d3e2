"""A benchmark's row: ours beside its peers, held against a target."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import interleaved_medians, medians, reason

Calls = dict[str, Callable[[], object]]


def compare(
    benchmark: Any,
    device: str,
    ours: Callable[[], object],
    peers: Calls,
    target: dict[str, Any] | None = None,
    *,
    waits: Calls | None = None,
    rounds: int | None = None,
    **about: Any,
) -> dict[str, float]:
    """Time ours and the peers in turn, write them down with the target and whether it is met, and run the fixture.

    On a GPU calls are replayed from CUDA graphs, but for the peers in ``waits``: there the host waits for the device,
    which no graph can hold, so they are launched and timed one by one; ``speedup_launched_alike`` is over ours launched
    so, too. Ours is timed twice, ``seconds_again`` being the
    second time: what lies between them is noise. ``target`` may have ``seconds``, the most, and ``speedup``, the least
    over each peer named; only a GPU is held to it. Returns the seconds of all, ours as ``dqcore``.
    """
    rounds, waits = rounds or (15 if device == "cuda" else 5), waits or {}
    seconds, failed = medians({"dqcore": ours, **peers}, device, rounds=rounds)
    alike = {}
    for name, call in running(waits, failed).items():
        launched, seconds[name] = interleaved_medians(ours, call, rounds=rounds)
        alike[name] = seconds[name] / launched
    again, _ = medians({"dqcore": ours}, device, rounds=rounds)
    mine = seconds["dqcore"]
    speedup = {name: peer / mine for name, peer in seconds.items() if name != "dqcore"}
    benchmark.extra_info |= {"seconds": mine, "seconds_again": again["dqcore"], "speedup": speedup, **about}
    benchmark.extra_info |= {"peers": {name: seconds[name] for name in speedup}, "left_out": failed}
    benchmark.extra_info |= {"launched_one_by_one": list(alike), "speedup_launched_alike": alike}
    if target and device == "cuda":
        benchmark.extra_info |= {"target": target, "met": met(target, mine, speedup)}
    benchmark(ours)
    return seconds


def beside(
    benchmark: Any,
    ours: Callable[[], object],
    peers: Calls,
    rounds: int,
    target: dict[str, Any] | None = None,
    **about: Any,
) -> None:
    """The same by the clock on the wall, launches included, so that the host's part counts; any device has a target."""
    failed: dict[str, str] = {}
    peers = running(peers, failed)
    mine, *others = interleaved_medians(ours, *peers.values(), rounds=rounds)
    theirs = dict(zip(peers, others, strict=True))
    speedup = {name: seconds / mine for name, seconds in theirs.items()}
    benchmark.extra_info |= {"seconds": mine, "peers": theirs, "speedup": speedup, "left_out": failed, **about}
    if target:
        benchmark.extra_info |= {"target": target, "met": met(target, mine, speedup)}
    benchmark(ours)


def running(calls: Calls, failed: dict[str, str]) -> Calls:
    """Those of the peers' calls that run, once each; why others do not is written into ``failed``."""
    good = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            failed[name] = reason(error)
        else:
            good[name] = call
    return good


def missing(error: ImportError) -> Callable[..., object]:
    """Stands for a peer whose package is not here: it is left out, and the row says so."""

    def call(*_: object) -> object:
        raise error

    return call


def met(target: dict[str, Any], seconds: float, speedup: dict[str, float]) -> bool | None:
    """Whether all of a target is reached; None if what is known is, but a peer is missing."""
    wanted = target.get("speedup", {})
    known = [speedup[peer] >= least for peer, least in wanted.items() if peer in speedup]
    known += [seconds <= target["seconds"]] if "seconds" in target else []
    if not all(known):
        return False
    return True if len(known) == len(wanted) + ("seconds" in target) else None


def hold(benchmark: Any, at_least: dict[str, float] | None = None, at_most: dict[str, float] | None = None) -> None:
    """Hold what a row tells of itself, by its fields' names, against limits, and write down whether all are reached."""
    least, most, about = at_least or {}, at_most or {}, benchmark.extra_info
    reached = [about[name] >= limit for name, limit in least.items()] + [about[name] <= most[name] for name in most]
    target = ({"at_least": least} if least else {}) | ({"at_most": most} if most else {})
    benchmark.extra_info |= {"target": target, "met": all(reached)}


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether cuBLAS may round float32 factors to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
