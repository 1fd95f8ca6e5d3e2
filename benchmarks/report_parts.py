"""The parts of ``gpu_report.py`` that measure: each runs processes of its own (:mod:`children`) within its seconds."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import report_rows
from children import Child, Ended

HERE = Path(__file__).resolve().parent
Note = Callable[[dict[str, Any]], None]
AHEAD = 3  # processes that import while another measures
CEILINGS = """
import sys
import report_parts, children
children.write(report_parts.measured_ceilings(sys.argv[1], sys.argv[2] == "tiny"))
"""


class Run(NamedTuple):
    """What all parts share.

    Attributes:
        device: "cuda" or "cpu".
        tiny: Whether sizes are tiny.
        only: Chooses rows and tables of kernels by their names.
        logs: Folder of what the processes print.
    """

    device: str
    tiny: bool
    only: re.Pattern[str]
    logs: Path

    @property
    def flags(self) -> list[str]:
        """What every child takes."""
        return ["--device", self.device, *(["--tiny"] if self.tiny else [])]


def ceilings(run: Run, seconds: float) -> dict[str, Any]:
    """What the machine does at most: bytes a second of a copy, operations a second of a bfloat16 product."""
    size = "tiny" if run.tiny else "whole"
    done = Child(["-c", CEILINGS, run.device, size], run.logs, "ceilings").finish(seconds)
    return {"ceilings": done.lines[0] if done.lines else {"failed": done.why}}


def measured_ceilings(device: str, tiny: bool) -> dict[str, float]:
    """In a process of its own: :func:`ceilings`."""
    import torch
    from timing import medians

    size, side = (2**16, 64) if tiny else (2**28, 8192)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    seconds, _ = medians({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device, rounds=7)
    return {"copy_bytes_per_second": 8 * size / seconds["copy"], "bf16_flops": 2 * side**3 / seconds["product"]}


def chosen(run: Run) -> list[str]:
    """Names of the rows; a dry run has none of whole models."""
    names = [name for name, *_ in report_rows.rows()]
    stems = report_rows.WHOLE_MODELS if run.tiny else {}
    return [name for name in names if run.only.search(name) and report_rows.stem_of(name) not in stems]


def named(only: re.Pattern[str], tiny: bool) -> list[str]:
    """Names of the rows and of the tables of kernels."""
    import report_kernels

    run = Run("", tiny, only, Path())
    return [*chosen(run), *(name for name in report_kernels.CASES if only.search(name))]


def rehearse(run: Run, seconds: float) -> dict[str, Any]:
    """Call what the rows call, so that all is compiled when they are measured; a process for each function."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name in chosen(run):
        if report_rows.stem_of(name) not in report_rows.WHOLE_MODELS:
            groups[name.split("[")[0]].append(name)
    end = time.monotonic() + seconds

    def one(item: tuple[str, list[str]]) -> str | None:
        left = end - time.monotonic()
        if left < 5:
            return "no time left"
        child = Child([*_row(run), "--rehearse", *item[1]], run.logs, f"rehearsal {item[0].replace('::', ' ')}")
        child.go()
        done = child.finish(left)
        return done.why or next((line["failed"] for line in done.lines if "failed" in line), None)

    with concurrent.futures.ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 3)) as pool:
        ended = dict(zip(groups, pool.map(one, groups.items()), strict=True))
    return {"rehearsal": {"ended": {name: why for name, why in ended.items() if why}}}


def _row(run: Run) -> list[str]:
    return [str(HERE / "report_rows.py"), *run.flags]


def rows(run: Run, seconds: float, note: Note = lambda found: None) -> dict[str, Any]:
    """Every row in a process of its own; in a dry run the rows of a file share one. What ended so far is noted."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name in chosen(run):
        groups[report_rows.stem_of(name) if run.tiny else name].append(name)

    def limit(name: str) -> float:
        return 600 if run.tiny else report_rows.WHOLE_MODELS.get(report_rows.stem_of(name), report_rows.LIMIT)

    def start(name: str, alone: tuple[str, ...] = ()) -> Child:
        options = ["--alone", *alone, "--"] if alone else ["--"]
        return Child([*_row(run), *options, *groups[name]], run.logs, "row " + re.sub(r"\W+", " ", name).strip())

    def measured(found: dict[str, Ended]) -> list[dict[str, Any]]:
        every = []
        for name, done in found.items():
            known = {line.get("name"): line for line in done.lines}
            every += [known.get(row, {"name": row, "failed": done.why or "wrote nothing"}) for row in groups[name]]
        return every

    end = time.monotonic() + seconds
    found, late = in_turn(list(groups), start, limit, end, lambda found: note({"rows": measured(found)}))
    return {"rows": measured(found), "no_time_for": [row for name in late for row in groups[name]]}


def in_turn(
    names: list[str],
    start: Callable[..., Child],
    limit: Callable[[str], float],
    end: float,
    note: Callable[[dict[str, Ended]], None] = lambda found: None,
) -> tuple[dict[str, Ended], list[str]]:
    """Let processes work one at a time, in this order, while the next ones already import what they need.

    A call that could not be captured in a CUDA graph is launched by itself at a second try.

    Args:
        names: Of the processes.
        start: Starts the process of a name; also takes the names of calls to launch by themselves.
        limit: Seconds that it may take.
        end: When all must be over, by ``time.monotonic``.
        note: Is given all that ended so far, each time one more has.

    Returns:
        How each ended, by name, and the names for which no time was left.
    """
    waiting: dict[str, Child] = {}
    found, late = {}, []
    for i, name in enumerate(names):
        left = end - time.monotonic()
        if left < limit(name) / 4:
            late.append(name)
            continue
        for soon in names[i : i + 1 + AHEAD]:
            if soon not in waiting:
                waiting[soon] = start(soon)
        found[name] = _turn(waiting[name], min(left, limit(name)))
        alone: list[str] = []
        while (again := _uncaptured(found[name])) and again not in alone and end - time.monotonic() > 5:
            alone.append(again)
            found[name] = _turn(start(name, tuple(alone)), min(end - time.monotonic(), limit(name)))
        if found[name].late and left < limit(name) and not found[name].lines:
            late.append(name)
            del found[name]
        note(found)
    for name in late:
        if name in waiting:
            waiting[name].stop()
    return found, late


def _turn(child: Child, seconds: float) -> Ended:
    child.go()
    return child.finish(seconds)


def _uncaptured(done: Ended) -> str | None:
    return next((line["cannot_be_captured"] for line in done.lines if "cannot_be_captured" in line), None)


def kernels(run: Run, seconds: float, note: Note = lambda found: None) -> dict[str, Any]:
    """The kernels of the larger ops and of a step of sampling and of training, each in a process of its own."""
    import report_kernels

    names = [name for name in report_kernels.CASES if run.only.search(name)]

    def tables(found: dict[str, Ended]) -> dict[str, Any]:
        lines = {name: done.lines[0] if done.lines else {"failed": done.why} for name, done in found.items()}
        return {name: {k: v for k, v in line.items() if k != "name"} for name, line in lines.items()}

    def start(name: str) -> Child:
        log = "kernels " + re.sub(r"\W+", " ", name).strip()
        return Child([str(HERE / "report_kernels.py"), *run.flags, name], run.logs, log)

    def limit(name: str) -> float:
        return 60 if "step" in name else 30

    end = time.monotonic() + seconds
    found, late = in_turn(names, start, limit, end, lambda found: note({"kernels": tables(found)}))
    lines = [report_kernels.show(name, table) for name, table in tables(found).items() if "us" in table]
    run.logs.mkdir(parents=True, exist_ok=True)
    (run.logs / "kernels.txt").write_text("\n".join(lines) + "\n")
    return {"kernels": tables(found), "no_kernels_of": late}
