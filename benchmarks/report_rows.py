"""The rows of ``gpu_report.py``, and the process that measures one or some of them.

``python report_rows.py NAME ...`` waits for a line on its standard input, so that all its imports are over before its
turn comes, and then writes a JSON object a row (:mod:`children`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import itertools
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timing
import torch
from children import wait, write

HERE = Path(__file__).resolve().parent

#: Files of benchmarks, the most important first; files that are not here come last.
ORDER = ["nearest_code", "varlen_attention", "dynamic_lookup", "quantizer", "decode_attention", "expand_features",
         "patch_entropy", "pack_features", "code_sums", "codebook_update", "draw_vectors", "lookup_loss",
         "cross_entropy", "add_layer_norm", "bias_gelu", "linear_gelu", "pack_codes", "unpack_codes", "sampling_step",
         "transformer_training", "generate", "prior_training"]  # fmt: skip
#: Files that measure whole models, and the seconds that one of their rows may take; a dry run leaves them to
#: ``pytest benchmarks/``, which runs them with small models.
WHOLE_MODELS = {"generate": 120, "prior_training": 60}
#: Seconds that any other row may take.
LIMIT = 75
#: Files that the report leaves to ``pytest benchmarks/``: they read images, or compare whole layers or what these
#: learn, which a CPU shows as well.
LEFT_OUT = {"compat", "compat_vector_quantize_pytorch", "defaults", "loading"}
#: And a row of a file that it does measure: the memory that a CPU takes.
CPU_ROWS = {"bench_patch_entropy_memory"}


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
        return self.pedantic(call, args, kwargs, rounds=12 if self.device == "cuda" else 1)

    def pedantic(
        self,
        call: Callable[..., Any],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
        rounds: int = 1,
        warmup_rounds: int = 0,
    ) -> Any:
        """So many calls, each waited for; those that warm up are not timed."""
        if timing.REHEARSAL:
            rounds, warmup_rounds = 1, 0
        for i in range(warmup_rounds + rounds):
            start = time.perf_counter()
            result = call(*args, **(kwargs or {}))
            if self.device == "cuda":
                torch.cuda.synchronize()
            if i >= warmup_rounds:
                self.times.append(time.perf_counter() - start)
        return result


def rows(only: list[str] | None = None) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, module and arguments of every row, the important ones first; of some files, if ``only`` names them.

    A file that needs a package which is not here is one row without a module, and with the ``error``.
    """
    stems = {path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")}
    for stem in sorted(stems - LEFT_OUT, key=lambda stem: (ORDER.index(stem) if stem in ORDER else len(ORDER), stem)):
        if only and stem not in only:
            continue
        try:
            module = importlib.import_module(f"bench_{stem}")
        except (Exception, pytest.skip.Exception) as error:
            yield f"bench_{stem}", None, {"error": f"{type(error).__name__}: {error}"}
            continue
        for name, function in list(vars(module).items()):  # a list: torch.compile adds names while a row runs
            if not name.startswith("bench_") or not callable(function) or name in CPU_ROWS:
                continue
            for arguments in choices(function):
                yield row_name(function, arguments), module, {"function": function, "arguments": arguments}


def row_name(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """A row's name: file, function and what its marks give it, in the order of :func:`choices`."""
    values = [given[name] for name, _ in _marks(function)]
    words = ",".join(str(getattr(value, "__name__", value)) for value in values)
    return f"{function.__module__}::{function.__name__}[{words}]"


def choices(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Every combination of what ``pytest.mark.parametrize`` gives a benchmark, one name a mark."""
    marks = _marks(function)
    for choice in itertools.product(*(values for _, values in marks)):
        yield {name: value for (name, _), value in zip(marks, choice, strict=True)}


def _marks(function: Callable[..., Any]) -> list[tuple[str, Iterable[Any]]]:
    return [mark.args[:2] for mark in reversed(getattr(function, "pytestmark", [])) if mark.name == "parametrize"]


def stem_of(name: str) -> str:
    """The file of a row."""
    return name.split("::")[0].removeprefix("bench_")


def measure(name: str, function: Callable[..., Any], arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """One row: its numbers, why it was skipped, or how it failed."""
    benchmark = Benchmark(device)
    known = inspect.signature(function).parameters
    given = arguments | ({"device": device} if "device" in known else {})
    start = time.monotonic()
    row: dict[str, Any] = {"name": name}
    try:
        function(benchmark, **given)
        low, high = _quartiles(benchmark.times)
        row |= {"median": statistics.median(benchmark.times), "iqr": high - low, "rounds": len(benchmark.times)}
    except pytest.skip.Exception as reason:
        row["skipped"] = str(reason)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        if isinstance(error, timing.CannotBeCaptured):
            row["cannot_be_captured"] = error.name
        traceback.print_exc(limit=-3)
    row["extra_info"] = benchmark.extra_info | {"took": round(time.monotonic() - start, 2)}
    if device == "cuda" and torch.cuda.is_initialized():
        row["extra_info"]["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def _quartiles(times: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return low, high


def main() -> None:
    """Measure the rows named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--rehearse", action="store_true", help="run each call once, so that it is compiled; measure none"
    )
    parser.add_argument("--alone", nargs="*", default=[], help="calls that no CUDA graph can hold")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU; --device cpu --tiny needs none")
    timing.REHEARSAL, timing.LAUNCHED_ALONE = args.rehearse, set(args.alone)
    if args.rehearse and args.device == "cuda":  # beside checks and tests, which must find memory too
        torch.cuda.set_per_process_memory_fraction(0.2)
    found = {name: (module, call) for name, module, call in rows([stem_of(name) for name in args.names])}
    with contextlib.suppress(ImportError):  # and with it Triton's import is over, too
        importlib.import_module("dqcore.kernels.launch")
    wait()
    for name in args.names:
        module, call = found[name]
        if module is None:
            write({"name": name, "failed": call["error"]})
            continue
        if args.tiny and hasattr(module, "TINY"):
            module.SHAPES = {args.device: module.TINY}
        torch.manual_seed(0)
        row = measure(name, call["function"], call["arguments"], args.device)
        if args.alone and "extra_info" in row:
            row["extra_info"]["launched_one_by_one"] = sorted(
                {*args.alone, *row["extra_info"].get("launched_one_by_one", [])}
            )
        write(row)


if __name__ == "__main__":
    sys.exit(main())
