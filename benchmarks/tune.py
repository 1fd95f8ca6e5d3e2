"""Choose the tile of every kernel that has a table in ``kernels/tables`` by measuring its candidates on this GPU.

``python benchmarks/tune.py`` compiles each candidate for each row of each table in parallel, leaves out those that
spill or exceed shared memory, checks and measures the rest, and writes the best into the table, under this GPU's
architecture. Then it measures the constants of the other kernels (:mod:`tune_constants`) and prints the best.
``--compile-only --arch 90`` needs no GPU: it prints what each candidate takes, to choose by hand.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import compile_check
import compile_measure
import tune_constants
import tune_problems
from machine import name_of, needs_triton, store

from dqcore.files import write_atomically

TABLES = Path(__file__).parents[1] / "kernels" / "tables"
RESULTS = Path(__file__).with_name("results")
ROUNDS = 9
FINALISTS = 3


def work(arch: int, stems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of each table for a GPU, as (stem, ``when``), those of the shapes that our benchmarks show first."""
    every = [(stem, row["when"]) for stem in stems for row in rows_of(stem, arch)]
    return sorted(every, key=lambda item: item[1] not in tune_problems.STEMS[item[0]].first)


def rows_of(stem: str, arch: int) -> list[dict[str, Any]]:
    """The rows that this architecture takes today."""
    table = json.loads((TABLES / f"{stem}.json").read_text())
    older = [other for other in table if int(other) <= arch]
    return table[max(older, key=int) if older else min(table, key=int)]["rows"]


def candidates(stem: str) -> list[dict[str, int]]:
    """The candidates in the kernel's file, and the configurations that the table has for any GPU."""
    module = importlib.import_module(f"dqcore.kernels.{tune_problems.STEMS[stem].module}")
    table = json.loads((TABLES / f"{stem}.json").read_text())
    offered = [*getattr(module, "CANDIDATES", []), *(row["config"] for part in table.values() for row in part["rows"])]
    return [config for i, config in enumerate(offered) if config not in offered[:i]]


def compile_row(stem: str, when: dict[str, Any], arch: int) -> list[dict[str, Any]]:
    """Compile every candidate for the sizes of one row, in each variant that the row covers; nothing runs."""
    from dqcore.kernels import tuned

    rows, known = [], tune_problems.STEMS[stem]
    found: list[tuple[Any, dict[str, Any], Any]] = []

    def seen(kernel: Any, text: str, given: dict[str, Any], compiled: Any) -> None:
        if kernel.__name__ == known.kernel:
            found.append((kernel, given, compiled))

    for config in candidates(stem):
        before = len(found)
        error = None
        try:
            compile_check.compiling(arch, seen)  # before a problem that launches a kernel to be set up
            for variant in known.variants(when):
                problem = known.problem(variant, "meta", False)
                with tuned.force(stem, config):
                    problem.run()
        except Exception as problem:  # this kernel cannot be compiled with this tile
            error = f"{type(problem).__name__}: {str(problem).strip().splitlines()[-1:]}"
        rows.append({"config": config, "compiled": slice(before, len(found)), "left_out": error})
    numbers = compile_measure.measure(found)
    for row in rows:
        row["compiled"] = numbers[row["compiled"]]
        row["left_out"] = row["left_out"] or _left_out(row["compiled"])
    return rows


def _left_out(found: list[dict[str, Any]]) -> str | None:
    """Why a candidate is not measured."""
    for row in found:
        if row["stack_bytes"]:
            return f"{row['stack_bytes']} bytes of stack"
        if row["shared_bytes"] > row["shared_limit"]:
            return f"{row['shared_bytes']} bytes of shared memory"
    return None if found else "the kernel was not launched"


def compile_all(rows: list[tuple[str, dict[str, Any]]], arch: int) -> list[list[dict[str, Any]]]:
    """:func:`compile_row` of each, in a process a core; the binaries stay in Triton's cache for the launches after."""
    os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
        return list(pool.map(compile_row, *zip(*rows, strict=True), [arch] * len(rows)))


def measure_row(
    stem: str, when: dict[str, Any], offered: list[dict[str, int]], device: str, tiny: bool
) -> list[dict[str, Any]]:
    """Check each candidate against the reference and time it; time the fastest few again, in turn; fastest first."""
    from timing import reason

    from dqcore.kernels import tuned

    problem = tune_problems.STEMS[stem].problem(when, device, tiny)
    expected = problem.reference()
    results = []
    for config in offered:
        row: dict[str, Any] = {"config": config}
        try:
            with tuned.force(stem, config):
                row["error"] = tune_problems.distance(problem.run(), expected)
                if not row["error"] <= problem.tolerance:
                    row["left_out"] = f"wrong by {row['error']:.2g}"
                else:
                    row["seconds"] = statistics.median(_times(problem, device, 1 if tiny else ROUNDS))
        except Exception as error:  # Triton's OutOfResources is no RuntimeError
            row["left_out"] = reason(error)
        results.append(row)
    good = sorted((row for row in results if "seconds" in row), key=lambda row: row["seconds"])
    again: list[list[float]] = [[] for _ in good[:FINALISTS]]
    for _ in range(1 if tiny else 3):
        for row, times in zip(good, again, strict=False):
            with tuned.force(stem, row["config"]):
                times += _times(problem, device, 1 if tiny else ROUNDS)
    for row, times in zip(good, again, strict=False):
        row["seconds"], row["spread"] = statistics.median(times), max(times) - min(times)
    best = sorted(good[:FINALISTS], key=lambda row: row["seconds"])
    return [*best, *good[FINALISTS:], *(row for row in results if "seconds" not in row)]


def _times(problem: tune_problems.Problem, device: str, rounds: int) -> list[float]:
    if device != "cuda":
        start = time.perf_counter()
        problem.run()
        return [time.perf_counter() - start] * rounds
    from timing import replayed

    run = replayed(problem.run)
    return [run() for _ in range(rounds)]


def write_table(stem: str, arch: int, chosen: list[tuple[dict[str, Any], dict[str, int]]], source: str) -> None:
    """Put the chosen configurations into a table. Rows that were not measured stay as they are, and are named."""
    path = TABLES / f"{stem}.json"
    rows = [dict(row) for row in rows_of(stem, arch)]
    kept = []
    for row in rows:
        config = next((config for when, config in chosen if when == row["when"]), None)
        if config is None:
            kept.append(json.dumps(row["when"]))
        row["config"] = config or row["config"]
    table = json.loads(path.read_text())
    table[str(arch)] = {"source": source + (f"; not measured: {', '.join(kept)}" if kept else ""), "rows": rows}
    parts = []
    for key in sorted(table, key=int):
        lines = ",\n".join(f"   {json.dumps(row)}" for row in table[key]["rows"])
        parts.append(f' "{key}": {{\n  "source": {json.dumps(table[key]["source"])},\n  "rows": [\n{lines}\n  ]\n }}')
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def tune(stems: list[str], arch: int, device: str, minutes: float, tiny: bool = False) -> dict[str, Any]:
    """Measure until the time is over, most important rows first; write the tables; return the record of the sweep."""
    from machine import machine, versions

    end = time.monotonic() + 60 * minutes
    rows = work(arch, stems)
    # Interpreted kernels are not compiled; there two candidates are enough to run every line.
    plain = [{"config": config, "compiled": [], "left_out": None} for stem in stems for config in candidates(stem)[:2]]
    compiled = [plain for _ in rows] if tiny else compile_all(rows, arch)
    about, now = machine(), versions()
    record: dict[str, Any] = {"machine": about, "versions": now, "arch": arch, "sweep": []}
    chosen: dict[str, list[tuple[dict[str, Any], dict[str, int]]]] = {stem: [] for stem in stems}
    try:
        for (stem, when), offered in zip(rows, compiled, strict=True):
            entry = {"stem": stem, "when": when, "compiled": offered}
            fit = [row["config"] for row in offered if row["left_out"] is None]
            entry |= _entry(stem, when, fit, device, tiny) if time.monotonic() < end else {"left_out": "no time left"}
            best = next(iter(entry.get("measured", [])), {})
            if "seconds" in best:
                chosen[stem].append((when, best["config"]))
            told = f"{best['seconds'] * 1e6:.1f} us, {best['config']}" if "seconds" in best else entry.get("left_out")
            print(f"{stem} {when}: {told or 'no candidate is left'}", flush=True)
            record["sweep"].append(entry)
            write_record(record)
    finally:  # an interrupt keeps what was measured
        what = f"torch {now['torch']}, Triton {now['triton']}, dqcore {now['dqcore']}"
        for stem in stems:
            if chosen[stem]:
                write_table(stem, arch, chosen[stem], f"measured on {about['gpu'] or about['cpu']}, {what}")
    return record


def _entry(stem: str, when: dict[str, Any], fit: list[dict[str, int]], device: str, tiny: bool) -> dict[str, Any]:
    """A row's measurements, or why there are none."""
    try:
        return {"measured": measure_row(stem, when, fit, device, tiny)}
    except Exception as error:  # no memory for its data, say
        return {"left_out": f"{type(error).__name__}: {str(error).strip()[:200]}"}


def write_record(record: dict[str, Any]) -> None:
    """Write a whole sweep into ``results/tune-<machine>.json``."""
    store(RESULTS / f"tune-{name_of(record['machine'])}.json", record)


def main() -> int:
    """Compile, or measure and write."""
    have = [stem for stem in tune_problems.STEMS if (TABLES / f"{stem}.json").exists()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stem", nargs="+", choices=[*have, "constants"], default=[*have, "constants"])
    parser.add_argument("--minutes", type=float, default=8, help="of all; compiling is not cut short")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--arch", type=int, choices=compile_measure.LIMITS, help="with --compile-only")
    args = parser.parse_args()
    stems = [stem for stem in args.stem if stem in have]
    if args.compile_only:
        needs_triton()
        rows = work(args.arch or 90, stems)
        compile_measure.show(rows, compile_all(rows, args.arch or 90))
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no GPU; --compile-only needs none", file=sys.stderr)
        return 1
    major, minor = torch.cuda.get_device_capability()
    end = time.monotonic() + 60 * args.minutes
    record = tune(stems, 10 * major + minor, "cuda", args.minutes * (0.7 if "constants" in args.stem else 1))
    if "constants" in args.stem:
        record["constants"] = tune_constants.sweep("cuda", end - time.monotonic())
        write_record(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
