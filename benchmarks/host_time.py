"""What a training step of the quantizer costs the host, measured without a GPU, beside that of the usual formula.

``python benchmarks/host_time.py [--profile]``; the formula is ``bench_quantizer.Formula``, plain PyTorch.
Triton compiles, looks up its kernels and packs their arguments as ever, and ops take the way of those on a GPU; only
the driver's call is left out. It prints two tables. Small tensors on the CPU say what a step costs: PyTorch allocates
and dispatches as it does for a GPU, and four codes and 4 x 4 cells take next to no time. Tensors without data
(``device="meta"``) have the sizes of a real step, but PyTorch computes their shapes in Python, which makes a step that
calls PyTorch often, as the formula's, look worse than it is. The number to watch is the first table's share of the
formula.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import functools
import importlib
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from compile_check import PROCESSORS, Driver
from machine import needs_triton

ROUNDS, CALLS = 15, 50
#: Images, channels, regions a side and codes, by device.
SIZES = {"cpu": (1, 256, 2, 4), "meta": (32, 256, 16, 1024)}
#: Functions whose time is told apart, those that call none of the others: what they do, module and name.
PARTS = {
    "input arranged and checked": [("dqcore.quantizer", "arrange")],
    "arguments of the step checked": [
        ("dqcore.ops.lookup_step", "check_granularities"),
        ("dqcore.codebook.fused", "can_update_by"),
        ("dqcore.codebook.fused", "can_step"),
    ],
    "launcher of lookup, loss and update": [("dqcore.kernels.lookup_step", "lookup_step_fwd")],
    "launcher of the lookup, backward": [("dqcore.kernels.dynamic_lookup_backward", "dynamic_lookup_bwd")],
}
BACKWARD = "backward pass beside its launcher"


class Utilities:
    """What Triton asks of a driver in order to load a kernel."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[object, int, int, int, int]:
        """Nothing is loaded; a module, a handle, registers, spills and threads."""
        return object(), 0, 32, 0, 1024

    def unload_module(self, module: object) -> None:
        """Nothing was loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """The most that any GPU has."""
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132}


class Standing(Driver):
    """A driver whose kernels end at once."""

    utils = Utilities()

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        """A launch that does nothing."""
        return lambda *args: None


def standing_for(arch: int) -> None:
    """From here on, tensors without data and those on the CPU are those of a GPU of this architecture."""
    import triton

    from dqcore import backends
    from dqcore.kernels import common
    from dqcore.ops import checks, registry

    triton.runtime.driver.set_active(Standing(arch))
    common.processors = lambda: PROCESSORS[arch]
    autocast = torch.is_autocast_enabled
    backends.route = lambda device: "gpu"
    backends.available = lambda kernel, device: True
    torch.is_autocast_enabled = lambda *kind: kind != ("meta",) and autocast(*kind)
    lookup = importlib.import_module("dqcore.ops.dynamic_lookup")
    lookup.check_grain = lambda grain, number: checks.check_tensor("grain", grain, dim=3, dtypes=(torch.int64,))
    for stem in ("dynamic_lookup", "dynamic_lookup_backward", "lookup_loss", "codebook_update"):
        registry._LIBRARY.impl(stem, functools.partial(registry.run, stem), "Meta", allow_override=True)


def steps(device: str) -> dict[str, Any]:
    """The steps to time, by name."""
    from bench_quantizer import Formula, step

    import dqcore

    (images, dim, side, size), kinds = SIZES[device], (dqcore.DynamicQuantizer, dqcore.DynamicQuantizer.paper)
    with torch.device(device):
        maps = [torch.randn(images, dim, side << g, side << g, requires_grad=True) for g in range(2)]
        grain = torch.ones(images, side, side, dtype=torch.int64)
        grad = torch.randn(images, dim, 2 * side, 2 * side)
        ours, paper = (kind(dim, size, 2, nonfinite="mask") for kind in kinds)
        formula = Formula(dim, size)
    for layer in (ours, paper):
        layer._ready = True
    return {
        "ours": step(ours, maps, grad, grain),
        "paper's settings": step(paper, maps, grad, grain),
        "formula": step(formula, maps[1], grad, grain),
    }


def host_times(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each call, in turn: the host's alone, for nothing runs."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.process_time() - start) / CALLS)
    return {name: statistics.median(found) for name, found in times.items()}


@contextlib.contextmanager
def timed(spent: Counter[str]) -> Iterator[None]:
    """Within, nanoseconds of the functions of PARTS, and of all of a backward pass, are added to ``spent``."""

    def watched(function: Any, part: str) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            start = time.perf_counter_ns()
            result = function(*args, **named)
            spent[part] += time.perf_counter_ns() - start
            return result

        return run

    places = [(part, importlib.import_module(module), name) for part, known in PARTS.items() for module, name in known]
    places.append((BACKWARD, torch.autograd, "grad"))
    before = [(module, name, getattr(module, name)) for _, module, name in places]
    for part, module, name in places:
        setattr(module, name, watched(getattr(module, name), part))
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def parts(call: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each part of a call, none in another."""
    found: list[Counter[str]] = []
    for _ in range(ROUNDS * CALLS):
        spent: Counter[str] = Counter()
        with timed(spent):
            start = time.perf_counter_ns()
            call()
            whole = time.perf_counter_ns() - start
        spent[BACKWARD] -= spent["launcher of the lookup, backward"]
        spent["forward pass beside these"] = whole - spent.total()
        found.append(spent)
    return {part: statistics.median(spent[part] for spent in found) * 1e-9 for part in found[-1]}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", action="store_true", help="also where Python's time goes in our step")
    args = parser.parse_args()
    needs_triton()
    torch.set_num_threads(1)
    standing_for(90)
    for device, title in (("cpu", "small tensors"), ("meta", "tensors without data")):
        calls = steps(device)
        for call in calls.values():
            for _ in range(3):
                call()
        times = host_times(calls)
        print(title)
        for name, seconds in times.items():
            print(f"  {name:36s} {seconds * 1e6:6.0f} us   {seconds / times['formula']:5.2f} of the formula's")
        if device == "cpu":
            ours, of_ours = calls["ours"], parts(calls["ours"])
            for part, seconds in of_ours.items():
                print(f"    {part:34s} {seconds * 1e6:6.0f} us")
    if args.profile:
        with cProfile.Profile() as profile:
            for _ in range(200):
                ours()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
