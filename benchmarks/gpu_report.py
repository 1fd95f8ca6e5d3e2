"""All that is claimed of a GPU, in one command of under nine minutes: right first, then every row of the targets.

``python benchmarks/gpu_report.py`` writes ``results/<gpu>.json`` and prints a table. It needs torch, Triton, numpy and
pytest; ``--dry-run`` runs all but the tests at tiny sizes on a CPU. Each of its parts has a time limit of its own, and
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
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import report_faults  # noqa: E402
import report_parts  # noqa: E402
from machine import RESULTS, keep, machine, name_of, power, versions  # noqa: E402

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
    """Run these parts; the record, which is also written after each of the three stages.

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
    record: dict[str, Any] = {"machine": machine(), "versions": versions(), "power_before": power()}
    path = folder / f"{'dry-run' if dry else name_of(record['machine'])}.json"

    def write(found: dict[str, Any]) -> None:
        record.update(found)
        record["minutes"] = round(clock.spent() / 60, 2)
        keep(path, record)

    write(_together(run, parts, clock.limit("together")))
    if "rows" in parts:
        write(report_parts.ceilings(run, 60))
        write(report_parts.rows(run, clock.limit("rows")))
    if "kernels" in parts:
        write(report_parts.kernels(run, clock.limit("kernels")))
    write({"power_after": power()})
    return record


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
    return found


def table(record: dict[str, Any]) -> str:
    """What was found, in lines; of a row our time, each peer's, the target and the verdict."""
    lines = []
    if "checks" in record:
        wrong = {name: fault for name, fault in record["checks"].items() if fault}
        lines.append(f"{len(record['checks']) - len(wrong)} of {len(record['checks'])} checks passed")
        lines += [f"  {name}: {fault}" for name, fault in wrong.items()]
    if "tests" in record:
        lines.append(f"tests: {record['tests']}")
    lines += [_line(row) for row in record.get("rows", [])]
    lines += [f"{name:75} no time left" for name in record.get("no_time_for", [])]
    for name, found in record.get("kernels", {}).items():
        lines.append(f"{name:75} {found.get('us', found.get('failed'))} us, {found.get('launches')} launches")
    if "sanitizer" in record:
        lines.append(f"compute-sanitizer: {record['sanitizer']}")
    return "\n".join([*lines, f"{record['minutes']} minutes"])


def _line(row: dict[str, Any]) -> str:
    if "skipped" in row or "failed" in row:
        return f"{row['name']:75} {row.get('failed') or 'skipped: ' + row['skipped']}"
    about = row["extra_info"]
    peers = " ".join(f"{name} {ratio:.2f}x" for name, ratio in about.get("speedup", {}).items())
    verdict = {True: "MET", False: "MISSED", None: "a peer is missing"}[about["met"]] if "met" in about else ""
    target = json.dumps(about["target"]) if "target" in about else ""
    return f"{row['name']:75} {1e6 * about.get('seconds', row['median']):10.1f} us  {verdict} {target} {peers}"


def wrong(record: dict[str, Any]) -> bool:
    """Whether anything failed; a missed target is no failure, nor is what no time was left for."""
    if any(record.get("checks", {}).values()) or record.get("tests", {}).get("failed"):
        return True
    if any("failed" in row for row in record.get("rows", [])) or "failed" in record.get("rehearsal", {}):
        return True
    return any(
        not found.get("passed", True) for found in record.get("sanitizer", {}).values() if isinstance(found, dict)
    )


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
    if not (args.dry_run or torch.cuda.is_available()):
        print("no GPU; --dry-run needs none", file=sys.stderr)
        return 1
    record = report("cpu" if args.dry_run else "cuda", args.minutes, args.out, parts, args.only, args.dry_run)
    print(table(record))
    return 1 if wrong(record) else 0


if __name__ == "__main__":
    sys.exit(main())
