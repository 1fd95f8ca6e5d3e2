"""A run of the GPU's report that is interrupted, finds no room on the disk, or breaks: what it found is kept."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import children
import gpu_report
import machine
import pytest
import report_parts

ROOT = Path(__file__).parents[2]
ROW = {"name": "bench_a::bench_a[]", "median": 1.0, "extra_info": {}}


@pytest.fixture
def dry(tmp_path, monkeypatch):
    """Runs rows and tables of kernels, in whose place stands what a test gives, and returns what is in the file."""
    monkeypatch.setattr(children, "_over", threading.Event())
    monkeypatch.setattr(report_parts, "ceilings", lambda run, seconds: {"ceilings": {}})

    def run(rows, kernels=lambda run, seconds, note: {"kernels": {}}):
        monkeypatch.setattr(report_parts, "rows", rows)
        monkeypatch.setattr(report_parts, "kernels", kernels)
        record = gpu_report.report("cpu", 1, tmp_path, ["rows", "kernels"], dry=True)
        written = json.loads((tmp_path / "dry-run.json").read_text())
        assert gpu_report.wrong(record) is gpu_report.wrong(written)
        return written

    return run


def test_an_interrupt_keeps_the_rows_that_ended(dry):
    def rows(run, seconds, note):
        note({"rows": [ROW]})
        raise KeyboardInterrupt

    written = dry(rows)
    assert [row["name"] for row in written["rows"]] == [ROW["name"]] and "interrupted" in written["broken"]
    assert "interrupted broke" in gpu_report.table(written) and gpu_report.wrong(written)
    with pytest.raises(RuntimeError, match="no process"):
        children.Child(["-c", ""], Path("nowhere"), "late")


def test_a_stage_that_breaks_costs_no_other(dry):
    def rows(run, seconds, note):
        note({"rows": [ROW]})
        raise OSError("no room for a log")

    written = dry(rows, lambda run, seconds, note: {"kernels": {"step": {"us": 1.0, "launches": 2.0}}})
    assert written["broken"] == {"rows": "OSError: no room for a log"} and written["rows"] and written["kernels"]


def test_a_disk_that_is_full_for_a_while(dry, monkeypatch):
    keep, calls = machine.keep, []

    def full(path, record):
        calls.append(path)
        if len(calls) in (2, 3):
            raise OSError(errno.ENOSPC, "no space left", str(path))
        keep(path, record)

    monkeypatch.setattr(gpu_report, "keep", full)
    written = dry(lambda run, seconds, note: {"rows": [ROW]})
    assert written["rows"] and written["broken"] == {} and len(calls) == 6
    calls[:] = [0]
    with pytest.raises(OSError, match="no space left"):  # at once, and not after minutes
        dry(lambda run, seconds, note: {"rows": [ROW]})


def test_what_is_noted_is_all_that_ended(tmp_path):
    code = "from children import wait, write; wait(); write({'row': 1})"

    def start(name, alone=()):
        return children.Child(["-c", code], tmp_path, name)

    noted = []
    report_parts.in_turn(
        ["a", "b"], start, lambda name: 60, time.monotonic() + 60, lambda found: noted.append([*found])
    )
    assert noted == [["a"], ["a", "b"]]


def test_a_process_that_wrote_its_row_and_does_not_end_has_a_row(tmp_path):
    code = "import time; from children import wait, write; wait(); write({'row': 1}); time.sleep(60)"
    found, late = report_parts.in_turn(
        ["a"], lambda name: children.Child(["-c", code], tmp_path, name), lambda name: 8, time.monotonic() + 4
    )
    assert found["a"].lines == [{"row": 1}] and late == []


SLEEPS = """
import sys
sys.path.insert(0, "benchmarks")
import children, gpu_report, report_faults
def checks(run, seconds):
    child = children.Child(["-c", "import time; time.sleep(60)"], run.logs, "checks")
    print(child.process.pid, flush=True)
    return {"checks": {"x": child.finish(seconds).why}}
report_faults.checks = checks
sys.argv[1:] = ["--dry-run", "--parts", "checks", "--out", sys.argv[1]]
sys.exit(gpu_report.main())
"""


def test_a_signal_ends_every_process(tmp_path):
    """Each child leads a group of its own, so nothing but the report itself ends it."""
    command = [sys.executable, "-c", SLEEPS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as report:
        child = int(report.stdout.readline())
        report.send_signal(signal.SIGTERM)
        rest, _ = report.communicate(timeout=30)
    assert report.returncode == 1 and "interrupted" in rest
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


GARBAGE = r"""
import os
import re
from children import wait, write
wait()
with open(os.environ["REPORT_OUT"], "ab") as file:
    file.write(b'\xff\x00{"name": \n5\nnull\n[1]\n{"name": "cut')
    file.write(b'\n')
write({"name": "a", "median": 1.0})
"""


def test_garbage_in_a_processs_results_is_passed_over(tmp_path):
    """As what a dying process leaves behind; once it ended the stage, and with it all rows that were to come."""
    start = lambda name, alone=(): children.Child(["-c", GARBAGE], tmp_path, name)  # noqa: E731
    found, late = report_parts.in_turn(["a", "b"], start, lambda name: 60, time.monotonic() + 60)
    assert late == [] and [done.lines for done in found.values()] == 2 * [[{"name": "a", "median": 1.0}]]


def test_a_row_that_is_no_row_fails_alone(tmp_path, monkeypatch):
    code = "from children import wait, write; wait(); write({'other': 1})"
    monkeypatch.setattr(report_parts, "chosen", lambda run: ["bench_a::one[]", "bench_b::two[]"])
    monkeypatch.setattr(report_parts, "Child", lambda command, folder, name: children.Child(["-c", code], folder, name))
    run = report_parts.Run("cpu", False, re.compile(""), tmp_path)
    found = report_parts.rows(run, 60)
    assert [row["failed"] for row in found["rows"]] == 2 * ["wrote nothing"] and found["no_time_for"] == []
