"""A benchmark's row: ours beside its peers, held against a target."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dqcore.testing import medians

Calls = dict[str, Callable[[], object]]


def compare(
    benchmark: Any,
    device: str,
    ours: Callable[[], object],
    peers: Calls,
    target: dict[str, Any] | None = None,
    rounds: int | None = None,
    **about: Any,
) -> dict[str, float]:
    """Time ours and the peers in turn, write them down with the target and whether it is met, and run the fixture.

    ``target`` may have ``seconds``, the most, and ``speedup``, the least over each peer named; only a GPU is held to
    it. Returns the seconds of all, ours as ``dqcore``.
    """
    calls = {"dqcore": ours, **peers}
    seconds, failed = medians(calls, device, rounds=rounds or (15 if device == "cuda" else 5))
    mine = seconds["dqcore"]
    speedup = {name: peer / mine for name, peer in seconds.items() if name != "dqcore"}
    benchmark.extra_info |= {"seconds": mine, "speedup": speedup, "left_out": failed, **about}
    benchmark.extra_info |= {"peers": {name: seconds[name] for name in speedup}}
    if target and device == "cuda":
        benchmark.extra_info |= {"target": target, "met": met(target, mine, speedup)}
    benchmark(ours)
    return seconds


def met(target: dict[str, Any], seconds: float, speedup: dict[str, float]) -> bool | None:
    """Whether all of a target is reached; None if what is known is, but a peer is missing."""
    wanted = target.get("speedup", {})
    known = [speedup[peer] >= least for peer, least in wanted.items() if peer in speedup]
    known += [seconds <= target["seconds"]] if "seconds" in target else []
    if not all(known):
        return False
    return True if len(known) == len(wanted) + ("seconds" in target) else None


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether cuBLAS may round float32 factors to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
