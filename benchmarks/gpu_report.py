"""All that is claimed of a GPU, in one command of under nine minutes: right first, then every row of the targets.

``python benchmarks/gpu_report.py`` writes ``results/<gpu>.json`` and prints a table. It needs torch, Triton, numpy and
pytest, its rows of whole models what training needs, and a row, test or peer whose package is missing is named;
``--dry-run`` runs all but the tests at tiny sizes on a CPU. Each of its parts has a time limit of its own, and
each row, table and check runs in a process that may die alone:

``checks``     the lookup against float64 on adversarial inputs, every op against its reference and a second run
``tests``      the tests that a GPU decides, in parallel
``sanitizer``  compute-sanitizer over one small launch of every kernel
``rows``       every benchmark beside its peers, against its target
``kernels``    where the time of the larger ops and of a step of sampling and training goes

The first three measure nothing, so they run side by side, and beside them each row's calls once, to be compiled. Rows
and kernels have the GPU for themselves; the most important come first, and those for which no time is left are named.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import children  # noqa: E402
import report_faults  # noqa: E402
import report_parts  # noqa: E402
from machine import RESULTS, keep, machine, name_of, power, versions  # noqa: E402
from report_table import table, wrong  # noqa: E402

#: The part of the time that is kept for each of what runs alone; what one leaves goes to the next.
SHARES = {"together": 0.35, "rows": 0.5, "kernels": 0.15}
#: What runs side by side, and after it what has the GPU for itself.
PARTS = ("checks", "tests", "sanitizer", "rows", "kernels")


def report(
    device: str,
    minutes: float,
    folder: Path,
    parts: list[str],
    only: str = "",
    dry: bool = False,
) -> dict[str, Any]:
    """Run these parts; the record, which is also written after each stage, each row and each table of kernels.

    A stage that breaks, an interrupt and a file that cannot be written stand in ``broken``.

    Args:
        device: "cuda", or "cpu" for a dry run.
        minutes: Of all together.
        folder: Where the record goes; logs go into a folder ``logs`` there.
        parts: Some of ``PARTS``.
        only: A regular expression that chooses rows and tables of kernels by their names.
        dry: Whether sizes are tiny.
    """
    clock = Clock(60 * minutes, parts)
    run = report_parts.Run(device, dry, re.compile(only), folder / "logs")
    record: dict[str, Any] = {"machine": machine(), "versions": versions(), "power_before": power(), "broken": {}}
    path = folder / f"{'dry-run' if dry else name_of(record['machine'])}.json"
    keep(path, record)  # what cannot be read or written ends it here, not after minutes

    def write(found: dict[str, Any]) -> None:
        record.update(found, minutes=round(clock.spent() / 60, 2))
        record["broken"].pop("file", None)
        try:
            keep(path, record)
        except OSError as error:  # a full disk, say: a later attempt writes all
            record["broken"]["file"] = str(error)

    try:
        for name, stage in _stages(run, parts, clock, write).items():
            try:
                write(stage())
            except Exception as error:  # the others still tell something
                record["broken"][name] = f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        children.stop_all()
        record["broken"]["interrupted"] = f"after {clock.spent():.0f} s"
    write({"power_after": power()})
    return record


def _stages(
    run: report_parts.Run, parts: list[str], clock: Clock, note: report_parts.Note
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What runs one after the other; rows and tables are noted as they come."""
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "together": lambda: _together(run, parts, clock.limit("together"))
    }
    if "rows" in parts:
        stages["ceilings"] = lambda: report_parts.ceilings(run, min(60, clock.limit("rows")))
        stages["rows"] = lambda: report_parts.rows(run, clock.limit("rows"), note)
    if "kernels" in parts:
        stages["kernels"] = lambda: report_parts.kernels(run, clock.limit("kernels"), note)
    return stages


class Clock:
    """What is left of the time, and how much of it each stage may take."""

    def __init__(self, seconds: float, parts: list[str]) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        alone = [stage for stage in ("rows", "kernels") if stage in parts]
        self.stages = [*(["together"] if {*parts} - {"kernels"} else []), *alone]

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def limit(self, stage: str) -> float:
        """Seconds for a stage: what is left, but for the shares of those that come after it."""
        if stage not in self.stages:
            return 0.0
        later = self.stages[self.stages.index(stage) + 1 :]
        whole = sum(SHARES[name] for name in self.stages)
        return self.seconds - self.spent() - self.seconds * sum(SHARES[name] for name in later) / whole


def _together(run: report_parts.Run, parts: list[str], seconds: float) -> dict[str, Any]:
    """What measures nothing, side by side; a part that breaks says so."""
    work: dict[str, Callable[[report_parts.Run, float], dict[str, Any]]] = {
        name: getattr(report_faults, name) for name in ("checks", "tests", "sanitizer") if name in parts
    }
    if "rows" in parts and run.device == "cuda":
        work["rehearsal"] = report_parts.rehearse
    found: dict[str, Any] = {}
    with concurrent.futures.ThreadPoolExecutor(len(work) or 1) as pool:
        waiting = {name: pool.submit(call, run, seconds) for name, call in work.items()}
        for name, done in waiting.items():
            try:
                found |= done.result()
            except Exception as error:  # the others still tell something
                found[name] = {"failed": f"{type(error).__name__}: {error}"}
            except KeyboardInterrupt:
                children.stop_all()  # or the pool would wait for them
                raise
    return found


def main() -> int:
    """Report, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--only", default="", metavar="REGEX", help="names of rows and of tables of kernels")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the logs")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: expected some of {','.join(PARTS)}, got {','.join(unknown)}")
    if not args.minutes > 0:
        parser.error(f"--minutes: expected more than 0, got {args.minutes:g}")
    try:
        re.compile(args.only)
    except re.error as error:
        parser.error(f"--only: expected a regular expression, got {args.only!r}: {error}")
    if not (args.dry_run or torch.cuda.is_available()):
        print("no GPU; --dry-run needs none", file=sys.stderr)
        return 1
    if {"rows", "kernels"} & {*parts} and not report_parts.named(re.compile(args.only), args.dry_run):
        parser.error(f"--only: no row and no table of kernels has a name like {args.only!r}")
    if versions()["dqcore"] == "unknown":
        print("no commit is known: set DQCORE_COMMIT, or the record will not say what it measured", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: what was found is kept
    record = report("cpu" if args.dry_run else "cuda", args.minutes, args.out, parts, args.only, args.dry_run)
    print(table(record))
    return 1 if wrong(record) else 0


if __name__ == "__main__":
    sys.exit(main())
