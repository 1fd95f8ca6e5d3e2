"""The parts of ``gpu_report.py`` that measure nothing: checks of every kernel, tests, and a sanitizer."""

from __future__ import annotations

import collections
import importlib.util
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from children import Child, Ended
from report_parts import HERE, Run

#: What a sanitizer returns if it found something and the program itself ended well.
FOUND = 9
#: PyTorch's own allocator would hide what reads beyond a tensor: its blocks hold many.
SANITIZED = """
import os
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
import torch
from small_launches import every_kernel, learns
for launch in (*every_kernel("cuda").values(), learns("cuda", 1, 40, 8)):
    launch()
torch.cuda.synchronize()
"""


def checks(run: Run, seconds: float) -> dict[str, Any]:
    """Each check by name, with what went wrong, or None."""
    done = Child([str(HERE / "gpu_checks.py"), *run.flags], run.logs, "checks").finish(seconds)
    found = {line["name"]: line["fault"] for line in done.lines}
    return {"checks": found | ({"all of them": done.why} if done.why else {})}


def tests(run: Run, seconds: float) -> dict[str, Any]:
    """How many tests passed and which did not, those that ended in time."""
    if run.tiny:
        return {"tests": {"skipped": "a dry run"}}
    command = ["-m", "pytest", "-vv", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu_tests"]
    command += ["--continue-on-collection-errors", "tests"]  # a file may need a package that this machine has not
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(max(1, min(12, len(os.sched_getaffinity(0)) - 4))), "--dist", "worksteal"]
    child = Child(command, run.logs, "pytest")
    done = child.finish(seconds)
    return {"tests": outcomes(child.log.read_text(errors="replace"), done)}


def outcomes(log: str, done: Ended) -> dict[str, Any]:
    """What pytest's verbose lines tell, so that a run that was cut off counts too.

    ``uncollected`` has the files that need a package which is not here; one that cannot be read otherwise has failed.
    """
    patterns = (
        r"^\[gw\d+\]\s+\[\s*\d+%\]\s+([A-Z]+) (tests/\S.*?)\s*$",
        r"^(tests/\S+::.+?) ([A-Z]+)\s+.*\[\s*\d+%\]$",
    )
    lines = [(found[1], found[2]) for found in re.finditer(patterns[0], log, re.MULTILINE)]
    lines += [(found[2], found[1]) for found in re.finditer(patterns[1], log, re.MULTILINE)]
    by_word: dict[str, list[str]] = collections.defaultdict(list)
    for word, name in lines:
        by_word[word].append(name)
    unread = uncollected(log)
    lacking = {name: why for name, why in unread.items() if why.startswith("ModuleNotFoundError")}
    failed = sorted({*by_word["FAILED"], *by_word["ERROR"], *(unread.keys() - lacking.keys())})
    if not lines:
        failed = ["all of them"]
    elif done.why and not (done.late or failed or lacking):
        failed = [f"pytest itself, {done.why}"]
    told = {"passed": len(by_word["PASSED"]), "skipped": len(by_word["SKIPPED"]), "failed": failed}
    return told | ({"uncollected": lacking} if lacking else {}) | ({"ended": done.why} if done.why else {})


def uncollected(log: str) -> dict[str, str]:
    """Files and folders whose tests pytest could not read, and why."""
    found = {}
    for part in re.split(r"^_+ ERROR collecting ", log, flags=re.MULTILINE)[1:]:
        reason = re.search(r"^E\s+(\S.*)$", part, re.MULTILINE)
        found[part.split()[0]] = reason[1][:200] if reason else "unknown"
    return found


def sanitizer(run: Run, seconds: float) -> dict[str, Any]:
    """compute-sanitizer over one small launch of every kernel, where the machine has it and lets it."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if run.tiny or not Path(tool).exists():
        return {"sanitizer": {"skipped": "a dry run" if run.tiny else "no compute-sanitizer"}}
    code = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    children = {}
    for check in ("memcheck", "racecheck"):
        options = ["--tool", check, "--error-exitcode", str(FOUND), "--target-processes", "all"]
        command = ["-c", code, tool, *options, sys.executable, "-c", SANITIZED]
        children[check] = Child(command, run.logs, check)
    end, found = time.monotonic() + seconds, {}
    for check, child in children.items():
        done = child.finish(end - time.monotonic())
        found[check] = verdict(child.log.read_text(errors="replace"), done)
    return {"sanitizer": found}


def verdict(log: str, done: Ended) -> dict[str, Any]:
    """Whether a sanitizer was content; skipped where it had no time, or ended without a word on what it found."""
    summaries = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: (\d+) .*)$", log, re.MULTILINE)
    if done.late or not summaries:
        return {"skipped": done.why or "it said nothing"}
    passed = done.why is None and not any(int(number) for _, number in summaries)
    return {"passed": passed, "said": "; ".join(line for line, _ in summaries)} | (
        {} if passed else {"ended": done.why}
    )
