"""All that is claimed of a GPU, in one command of under nine minutes: right first, then every row of the targets.

``python benchmarks/gpu_report.py`` writes ``results/<gpu>.json`` and prints a table. It needs torch, Triton, numpy and
pytest; ``--dry-run`` runs every row at tiny sizes on the CPU. A row is a call of a ``bench_*`` function with one choice
of its parameters; the rows come in the order of ``ORDER``, and those for which no time is left are named.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import machine, name_of, power, versions  # noqa: E402

#: Files of benchmarks, the most important first; files that are not here come last.
ORDER = ["nearest_code", "varlen_attention", "dynamic_lookup", "quantizer", "decode_attention", "expand_features",
         "patch_entropy", "pack_features", "code_sums", "pack_codes", "unpack_codes", "transformer_training",
         "generate", "prior_training"]  # fmt: skip
#: Files that measure whole models, and the seconds that must be left for one of their rows; a dry run leaves them to
#: ``pytest benchmarks/``, which runs them with small models.
WHOLE_MODELS = {"generate": 120, "prior_training": 60}
#: Files that the report leaves to ``pytest benchmarks/``: they compare whole layers or what these learn, which a CPU
#: shows as well.
LEFT_OUT = {"compat", "compat_vector_quantize_pytorch", "defaults"}
TESTS = ["tests/test_precompile.py", "tests/kernels", "tests/ops", "tests/test_quantizer.py", "tests/quantizer"]
SANITIZED = """
import torch
from gpu_checks import every_kernel
for launch in every_kernel("cuda").values():
    launch()
torch.cuda.synchronize()
"""


class Benchmark:
    """Stands in for pytest-benchmark's fixture: the call once more, by the clock on the wall."""

    def __init__(self, device: str) -> None:
        self.device, self.extra_info, self.times = device, {}, []

    @property
    def stats(self) -> SimpleNamespace:
        """As there: ``stats.stats.median``."""
        return SimpleNamespace(stats=SimpleNamespace(median=statistics.median(self.times)))

    def __call__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Median of some calls, each waited for."""
        for _ in range(12 if self.device == "cuda" else 1):
            start = time.perf_counter()
            result = call(*args, **kwargs)
            if self.device == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter() - start)
        return result

    def pedantic(
        self,
        call: Callable[..., Any],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
        rounds: int = 1,
        warmup_rounds: int = 0,
    ) -> Any:
        """So many calls, each waited for; those that warm up are not timed."""
        for i in range(warmup_rounds + rounds):
            start = time.perf_counter()
            result = call(*args, **(kwargs or {}))
            if self.device == "cuda":
                torch.cuda.synchronize()
            if i >= warmup_rounds:
                self.times.append(time.perf_counter() - start)
        return result


def rows(only: list[str] | None = None) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, module and arguments of every row, the important ones first."""
    stems = {path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")}
    for stem in sorted(stems - LEFT_OUT, key=lambda stem: (ORDER.index(stem) if stem in ORDER else len(ORDER), stem)):
        if only and stem not in only:
            continue
        module = importlib.import_module(f"bench_{stem}")
        for name, function in vars(module).items():
            if not name.startswith("bench_") or not callable(function):
                continue
            for arguments in _choices(function):
                given = ",".join(str(getattr(value, "__name__", value)) for value in arguments.values())
                yield f"{module.__name__}::{name}[{given}]", module, {"function": function, "arguments": arguments}


def _choices(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Every combination of what ``pytest.mark.parametrize`` gives a benchmark, one name a mark."""
    marks = [mark.args for mark in reversed(getattr(function, "pytestmark", [])) if mark.name == "parametrize"]
    for choice in itertools.product(*(values for _, values in marks)):
        yield {name: value for (name, _), value in zip(marks, choice, strict=True)}


def measure(name: str, function: Callable[..., Any], arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """One row: its numbers, why it was skipped, or how it failed."""
    benchmark = Benchmark(device)
    known = inspect.signature(function).parameters
    given = arguments | ({"device": device} if "device" in known else {})
    start = time.monotonic()
    row: dict[str, Any] = {"name": name}
    try:
        function(benchmark, **given)
        row |= {"wall_median": statistics.median(benchmark.times), "wall_spread": _spread(benchmark.times)}
    except pytest.skip.Exception as reason:
        row["skipped"] = str(reason)
    except Exception as error:  # a wrong or failing row must not cost the others their turn
        row["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        traceback.print_exc(limit=-3)
    if device == "cuda":
        torch.cuda.empty_cache()
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return row | benchmark.extra_info | {"took": round(time.monotonic() - start, 2)}


def _spread(times: list[float]) -> float:
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return high - low


def tests(folder: Path, seconds: float) -> dict[str, Any]:
    """The tests that a GPU decides, by pytest in a process of its own."""
    there = [
        path
        for path in [*TESTS, *map(str, HERE.parent.glob("tests/**/test_*gpu*.py"))]
        if (HERE.parent / path).exists()
    ]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", "cuda or gpu", *there]
    return _run([*command, "-m", "gpu or not slow"], seconds, folder / "pytest.log")


def sanitize(folder: Path, seconds: float) -> dict[str, Any]:
    """compute-sanitizer over one small launch of every kernel, where the machine has it and lets it."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"skipped": "no compute-sanitizer"}
    found = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
        found[check] = _run(command, seconds / 2, folder / f"{check}.log")
    return found


def _run(command: list[str], seconds: float, log: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, capture_output=True, text=True, timeout=max(5, seconds), env=_environment()
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"took over {seconds:.0f} s"}
    log.write_text(done.stdout + done.stderr)
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:]
    return {"passed": done.returncode == 0, "said": last[0] if last else ""}


def _environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}


def ceilings(device: str) -> dict[str, float]:
    """What the machine does at most: bytes a second of a copy, operations a second of a bfloat16 product."""
    from timing import medians

    size, side = (2**28, 8192) if device == "cuda" else (2**16, 64)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    seconds, _ = medians({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device, rounds=7)
    return {"copy_bytes_per_second": 8 * size / seconds["copy"], "bf16_flops": 2 * side**3 / seconds["product"]}


def report(
    device: str, minutes: float, folder: Path, only: list[str] | None = None, dry: bool = False
) -> dict[str, Any]:
    """Checks, then rows until the time is over; the record, which is also written after every row."""
    import gpu_checks

    end = time.monotonic() + 60 * minutes
    torch.manual_seed(0)
    record: dict[str, Any] = {"machine": machine(), "versions": versions(), "power_before": power()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'dry-run' if dry else name_of(record['machine'])}.json"

    def left() -> float:
        return end - time.monotonic()

    record["checks"] = gpu_checks.run(device, tiny=dry)
    wrong = [name for name, fault in record["checks"].items() if fault]
    print(
        f"{len(record['checks']) - len(wrong)} of {len(record['checks'])} checks passed"
        + "".join(f"\n  {x}" for x in wrong)
    )
    if not dry:
        record["tests"] = tests(folder, min(150, 0.3 * left()))
        print(f"tests: {record['tests']}")
    record["ceilings"] = ceilings(device)
    record["rows"], late = [], []
    for name, module, call in rows(only):
        whole = WHOLE_MODELS.get(module.__name__.removeprefix("bench_"))
        if dry and whole:
            continue
        if left() < (0 if dry else whole or 20):
            late.append(name)
            continue
        if dry and hasattr(module, "TINY"):
            module.SHAPES = {device: module.TINY}
        record["rows"].append(measure(name, call["function"], call["arguments"], device))
        path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    record["sanitizer"] = {"skipped": "a dry run"} if dry else sanitize(folder, left())
    record |= {"no_time_for": late, "power_after": power(), "minutes": round((60 * minutes - left()) / 60, 2)}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    return record


def table(record: dict[str, Any]) -> str:
    """A line a row: our time, each peer's, the target and whether it is met."""
    lines = []
    for row in record["rows"]:
        if "skipped" in row or "failed" in row:
            lines.append(f"{row['name']:75} {row.get('failed') or 'skipped: ' + row['skipped']}")
            continue
        peers = " ".join(f"{name} {ratio:.2f}x" for name, ratio in row.get("speedup", {}).items())
        verdict = {True: "MET", False: "MISSED", None: "a peer is missing"}[row["met"]] if "met" in row else ""
        target = json.dumps(row["target"]) if "target" in row else ""
        ours = row.get("seconds", row["wall_median"])
        lines.append(f"{row['name']:75} {1e6 * (ours or math.nan):10.1f} us  {verdict} {target} {peers}")
    lines += [f"{name:75} no time left" for name in record["no_time_for"]]
    return "\n".join([*lines, f"compute-sanitizer: {record['sanitizer']}", f"{record['minutes']} minutes"])


def main() -> int:
    """Report, and fail if anything is wrong; a missed target is no failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--only", nargs="+", help="stems of benchmarks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the logs")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, into --out or a temporary place")
    args = parser.parse_args()
    if not (args.dry_run or torch.cuda.is_available()):
        print("no GPU; --dry-run needs none", file=sys.stderr)
        return 1
    record = report("cpu" if args.dry_run else "cuda", args.minutes, args.out, args.only, args.dry_run)
    print(table(record))
    wrong = any(record["checks"].values()) or any("failed" in row for row in record["rows"])
    return 1 if wrong or not record.get("tests", {}).get("passed", True) else 0


if __name__ == "__main__":
    sys.exit(main())
