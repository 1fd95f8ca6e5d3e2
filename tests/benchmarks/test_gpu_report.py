import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import children
import gpu_checks
import gpu_report
import pytest
import report_faults
import report_kernels
import report_parts
import report_rows
import small_launches
import torch

ROOT = Path(__file__).parents[2]
OWN = ["nearest_code", "dynamic_lookup", "expand_features", "pack_features", "patch_entropy", "quantizer", "code_sums"]


@pytest.fixture
def run(tmp_path):
    """A dry run of everything."""
    return report_parts.Run("cpu", True, re.compile(""), tmp_path / "logs")


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    """Each line of the report but the GPU's own, at tiny sizes."""
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    only = "|".join([*(f"bench_{stem}::" for stem in OWN), "^code_sums", "^attention 16 x 64 b", "^training"])
    script = [sys.executable, ROOT / "benchmarks" / "gpu_report.py", "--dry-run", "--out", tmp_path, "--only", only]
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "dry-run.json").read_text())
    assert set(record["checks"].values()) == {None} and len(record["checks"]) > 30
    names = {row["name"].split("::")[0] for row in record["rows"]}
    assert names == {f"bench_{stem}" for stem in OWN}
    measured = [row for row in record["rows"] if "skipped" not in row]
    assert len(measured) >= 15 and not any("failed" in row for row in record["rows"])
    assert all(row["rounds"] == 1 and row["versions"]["torch"] == torch.__version__ for row in measured)
    assert sum(bool(row["extra_info"].get("speedup")) for row in measured) >= 12
    assert not any(row["extra_info"].get("left_out") for row in measured)
    assert record["ceilings"]["copy_bytes_per_second"] > 0
    assert len(record["kernels"]) == 4 and all(table["us"] > 0 for table in record["kernels"].values())
    for row in record["rows"]:
        assert row["name"] in done.stdout


def test_important_rows_come_first():
    names = [name for name, *_ in report_rows.rows()]
    assert names[0].startswith("bench_nearest_code") and len(names) == len(set(names)) > 25
    assert {name.split("::")[0] for name in names[-6:]} == {"bench_generate", "bench_prior_training"}


def test_a_module_may_grow_while_its_rows_run():
    """As torch.compile does to the module of what it compiles."""
    import bench_code_sums as module

    try:
        found = []
        for name, *_ in report_rows.rows(["code_sums"]):
            found.append(name)
            setattr(module, f"__compiled_{len(found)}", None)
    finally:
        for i in range(len(found)):
            delattr(module, f"__compiled_{i + 1}")
    assert len(found) == 2


def test_a_file_whose_package_is_missing_is_one_failed_row(monkeypatch, run, tmp_path):
    """As where tyro is, which training needs: once the whole report ended there."""
    found = importlib.import_module

    def without(name):
        if name == "bench_prior_training":
            raise ModuleNotFoundError("No module named 'tyro'")
        return found(name)

    monkeypatch.setattr(report_rows.importlib, "import_module", without)
    names = report_parts.chosen(run._replace(tiny=False))
    assert names[-1] == "bench_prior_training" and len(names) > 50
    monkeypatch.setattr(report_rows, "wait", lambda: None)
    monkeypatch.setattr(sys, "argv", ["report_rows.py", "--device", "cpu", "bench_prior_training"])
    monkeypatch.setenv("REPORT_OUT", str(tmp_path / "out"))
    report_rows.main()
    row = json.loads((tmp_path / "out").read_text())
    assert row == {"name": "bench_prior_training", "failed": "ModuleNotFoundError: No module named 'tyro'"}
    assert "No module named 'tyro'" in gpu_report.table({"rows": [row], "minutes": 1})


@pytest.mark.slow
def test_rows_of_whole_models_run():
    """With the stand-in for pytest-benchmark's fixture."""
    for stem in report_rows.WHOLE_MODELS:
        for name, _, call in report_rows.rows([stem]):
            if "packed" not in name and "cached" not in name:  # those take long on a CPU
                row = report_rows.measure(name, call["function"], call["arguments"], "cpu")
                assert row["extra_info"].get("images_per_second", 1) > 0 and "failed" not in row


def test_rows_are_every_choice():
    @pytest.mark.parametrize("a", [1, 2])
    @pytest.mark.parametrize("b", ["x", "y"])
    def bench(benchmark, a, b):
        pass

    assert list(report_rows.choices(bench)) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]


def skips(benchmark):
    pytest.skip("not here")


def fails(benchmark, device):
    benchmark.extra_info["seconds"] = 1.0
    raise ValueError("wrong result")


def cannot(benchmark):
    raise report_rows.timing.CannotBeCaptured("cudnn", RuntimeError("it waits"))


def passes(benchmark, device):
    benchmark.extra_info |= {"seconds": 2e-6, "speedup": {"peer": 3.0}, "target": {"seconds": 1e-6}, "met": False}
    benchmark(lambda: device)


def test_a_row_that_fails_does_not_end_the_report(capsys):
    found = [report_rows.measure(f.__name__, f, {}, "cpu") for f in (skips, fails, cannot, passes)]
    assert found[0]["skipped"] == "not here"
    assert found[1]["failed"] == "ValueError: ['wrong result']"
    assert found[2]["cannot_be_captured"] == "cudnn" and "it waits" in found[2]["failed"]
    assert found[3]["median"] > 0 and found[3]["extra_info"]["seconds"] == 2e-6
    record = {"rows": found, "no_time_for": ["later"], "minutes": 1}
    lines = gpu_report.table(record).splitlines()
    assert "skipped: not here" in lines[0] and "ValueError" in lines[1]
    assert all(word in lines[3] for word in ("2.0 us", "MISSED", "peer 3.00x")) and lines[4].endswith("no time left")
    assert gpu_report.wrong(record) and not gpu_report.wrong({"rows": found[3:]})


def child(code, folder, name="child"):
    return children.Child(["-c", f"import os, sys, time\nfrom children import wait, write\n{code}"], folder, name)


def test_what_a_process_breaks_costs_no_other(tmp_path):
    crashing = child("write({'a': 1}); os.abort()", tmp_path, "crashing")
    hanging = child("write({'a': 2}); print('so far', flush=True); time.sleep(60)", tmp_path, "hanging")
    waiting = child("wait(); write({'a': 3})", tmp_path, "waiting")
    done = crashing.finish(20)
    assert done.lines == [{"a": 1}] and done.why.startswith("exit code -6") and not done.late
    done = waiting.finish(0.1)  # nobody let it go
    assert done.late and done.lines == []
    waiting = child("wait(); write({'a': 3})", tmp_path, "waiting")
    waiting.go()
    assert waiting.finish(20) == ([{"a": 3}], None, False)
    while not hanging.last():
        time.sleep(0.01)
    done = hanging.finish(0.1)
    assert done.lines == [{"a": 2}] and done.late and hanging.process.poll() is not None


class Made:
    """Stands for a process: what it will have found, and the order of events."""

    events: ClassVar[list[str]] = []

    def __init__(self, name, alone=()):
        self.name, self.alone = name, alone
        self.events.append(f"start {name}")

    def go(self):
        self.events.append(f"go {self.name}")

    def finish(self, seconds):
        if self.name == "slow":
            return children.Ended([], "took over", late=True)
        if self.name == "cudnn" and set(self.alone) != {"forward", "backward"}:
            next_one = "backward" if "forward" in self.alone else "forward"
            return children.Ended([{"cannot_be_captured": next_one}], None)
        return children.Ended([{"alone": list(self.alone)}], None)

    def stop(self):
        self.events.append(f"stop {self.name}")


def test_rows_take_turns_while_the_next_ones_import():
    Made.events = []
    end = time.monotonic() + 50
    found, late = report_parts.in_turn(["a", "cudnn", "b", "c", "slow", "last"], Made, lambda name: 60, end)
    assert found["cudnn"].lines == [{"alone": ["forward", "backward"]}]  # found out, then launched one by one
    assert late == ["slow"] and found.keys() == {"a", "cudnn", "b", "c", "last"}  # it had less than its 60 seconds
    assert Made.events.index("start c") < Made.events.index("go a") < Made.events.index("start slow")
    assert report_parts.in_turn(["a"], Made, lambda name: 60, time.monotonic() + 5) == ({}, ["a"])


def test_each_stage_keeps_its_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_report.time, "monotonic", lambda: now[0])
    clock = gpu_report.Clock(100, ["checks", "rows", "kernels"])
    assert clock.limit("together") == pytest.approx(35)
    now[0] = 10.0  # the first left 25 seconds to the next
    assert clock.limit("rows") == pytest.approx(75) and clock.limit("kernels") == pytest.approx(90)
    assert gpu_report.Clock(100, ["rows"]).limit("rows") > 50
    assert gpu_report.Clock(100, ["kernels"]).limit("kernels") == pytest.approx(90 + 10)


def test_late_rows_are_named(tmp_path, run):
    names = report_parts.chosen(run._replace(only=re.compile("code_sums")))
    assert len(names) == 2
    record = report_parts.rows(run._replace(only=re.compile("code_sums")), -1)
    assert record == {"rows": [], "no_time_for": names}
    assert report_parts.kernels(run, -1)["no_kernels_of"] == list(report_kernels.CASES)


def test_a_part_that_breaks_costs_no_other(monkeypatch, run):
    def breaks(run, seconds):
        raise OSError("no such file")

    monkeypatch.setattr(report_faults, "checks", breaks)
    monkeypatch.setattr(report_faults, "tests", lambda run, seconds: {"tests": {"passed": 3, "failed": []}})
    found = gpu_report._together(run, ["checks", "tests"], 1)
    assert found == {"checks": {"failed": "OSError: no such file"}, "tests": {"passed": 3, "failed": []}}
    assert gpu_report.wrong(found)


def test_a_wrong_kernel_is_named(monkeypatch):
    def wrong():
        raise AssertionError("two runs differ")

    monkeypatch.setattr(gpu_checks, "checks", lambda *_: {"good": lambda: None, "bad": wrong})
    assert dict(gpu_checks.run("cpu", tiny=True)) == {"good": None, "bad": "AssertionError: two runs differ"}


def test_checks_can_fail(monkeypatch):
    exact = gpu_checks.nearest_code
    monkeypatch.setattr(gpu_checks, "nearest_code", lambda x, codebook: (exact(x, codebook) + 1) % len(codebook))
    faults = dict(gpu_checks.run("cpu", tiny=True))
    assert faults["nearest_code gaussian 33x40x8 torch.float32"].startswith("AssertionError")
    assert faults["nearest_code all_equal 33x40x8 torch.float32"] is None  # any code is nearest
    calls = iter(range(100))
    monkeypatch.setattr(small_launches, "_entropy", lambda device: torch.tensor([float(next(calls))]))
    assert dict(gpu_checks.run("cpu", tiny=True))["patch_entropy again"] == "AssertionError: two runs differ"
