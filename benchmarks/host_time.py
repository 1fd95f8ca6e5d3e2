"""What a training step of the quantizer costs the host, measured without a GPU, beside the formula's step.

Tensors have no data (``device="meta"``), ops take the way of those on a GPU, and Triton compiles, looks up its kernels
and packs their arguments as ever; only the driver's call is left out. ``python benchmarks/host_time.py [--profile]``.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import sys
import time
from typing import Any

import torch
from compile_check import PROCESSORS, Driver

ROUNDS = 9


class Utilities:
    """What Triton asks of a driver in order to load a kernel."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[None, int, int, int, int]:
        """Nothing is loaded; a handle, registers, spills and threads."""
        return None, 0, 32, 0, 1024

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
    """From here on, tensors without data are those of a GPU of this architecture."""
    import triton

    from dqcore import backends
    from dqcore.kernels import common
    from dqcore.ops import registry

    triton.runtime.driver.set_active(Standing(arch))
    common.processors = lambda: PROCESSORS[arch]
    known, available, autocast = backends.route, backends.available, torch.is_autocast_enabled
    backends.route = lambda device: "gpu" if device.type == "meta" else known(device)
    backends.available = lambda kernel, device: device.type == "meta" or available(kernel, device)
    torch.is_autocast_enabled = lambda *kind: kind != ("meta",) and autocast(*kind)
    for stem in ("dynamic_lookup", "dynamic_lookup_backward", "lookup_loss", "codebook_update"):
        registry._LIBRARY.impl(stem, registry.implementations[stem], "Meta", allow_override=True)


def steps() -> dict[str, Any]:
    """The steps to time, by name."""
    from bench_quantizer import Formula, step

    import dqcore

    with torch.device("meta"):
        maps = [torch.randn(32, 256, 16 << g, 16 << g, requires_grad=True) for g in range(2)]
        grain, grad = torch.ones(32, 16, 16, dtype=torch.int64), torch.randn(32, 256, 32, 32)
        ours, paper = dqcore.DynamicQuantizer(256, 1024, 2), dqcore.DynamicQuantizer.paper(256, 1024, 2)
        formula = Formula(256, 1024)
    for layer in (ours, paper):
        layer._ready = True
    return {
        "ours": step(ours, maps, grad, grain),
        "paper's settings": step(paper, maps, grad, grain),
        "formula": step(formula, maps[1], grad, grain),
    }


def host_time(call: Any, calls: int = 50) -> float:
    """Median seconds of a call: the host's alone, for nothing runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(calls):
            call()
        times.append((time.process_time() - start) / calls)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    standing_for(90)
    calls = steps()
    for call in calls.values():
        call()
    for name, call in calls.items():
        print(f"{name:20s} {host_time(call) * 1e6:7.0f} us")
    if "--profile" in sys.argv:
        with cProfile.Profile() as profile:
            for _ in range(200):
                calls["ours"]()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
