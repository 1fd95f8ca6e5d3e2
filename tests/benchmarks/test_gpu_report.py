import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
gpu_report, gpu_checks, rows = (importlib.import_module(name) for name in ("gpu_report", "gpu_checks", "rows"))
OWN = ["nearest_code", "dynamic_lookup", "expand_features", "pack_features", "patch_entropy", "quantizer", "code_sums"]


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    """Each line of the report but the GPU's own, at tiny sizes."""
    env = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, ROOT / "benchmarks" / "gpu_report.py", "--dry-run", "--out", tmp_path, "--only", *OWN]
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "dry-run.json").read_text())
    assert set(record["checks"].values()) == {None} and len(record["checks"]) > 30
    names = {row["name"].split("::")[0] for row in record["rows"]}
    assert names == {f"bench_{stem}" for stem in OWN}
    measured = [row for row in record["rows"] if "skipped" not in row]
    assert len(measured) >= 15 and not any("failed" in row for row in record["rows"])
    assert sum(bool(row.get("speedup")) for row in measured) >= 12
    assert not any(row.get("left_out") for row in measured)
    assert record["ceilings"]["copy_bytes_per_second"] > 0
    for row in record["rows"]:
        assert row["name"] in done.stdout


def test_important_rows_come_first():
    names = [name for name, *_ in gpu_report.rows()]
    assert names[0].startswith("bench_nearest_code") and len(names) == len(set(names)) > 25
    assert {name.split("::")[0] for name in names[-6:]} == {"bench_generate", "bench_prior_training"}


@pytest.mark.slow
def test_rows_of_whole_models_run():
    """With the stand-in for pytest-benchmark's fixture."""
    for stem in gpu_report.WHOLE_MODELS:
        for name, _, call in gpu_report.rows([stem]):
            if "packed" not in name and "cached" not in name:  # those take long on a CPU
                row = gpu_report.measure(name, call["function"], call["arguments"], "cpu")
                assert row.get("images_per_second", 1) > 0 and "failed" not in row


def test_rows_are_every_choice():
    @pytest.mark.parametrize("a", [1, 2])
    @pytest.mark.parametrize("b", ["x", "y"])
    def bench(benchmark, a, b):
        pass

    assert list(gpu_report._choices(bench)) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]


def skips(benchmark):
    pytest.skip("not here")


def fails(benchmark, device):
    benchmark.extra_info["seconds"] = 1.0
    raise ValueError("wrong result")


def passes(benchmark, device):
    benchmark.extra_info |= {"seconds": 2e-6, "speedup": {"peer": 3.0}, "target": {"seconds": 1e-6}, "met": False}
    benchmark(lambda: device)


def test_a_row_that_fails_does_not_end_the_report(capsys):
    found = [gpu_report.measure(f.__name__, f, {}, "cpu") for f in (skips, fails, passes)]
    assert found[0]["skipped"] == "not here"
    assert found[1]["failed"] == "ValueError: ['wrong result']"
    assert found[2]["wall_median"] > 0 and found[2]["seconds"] == 2e-6
    record = {"rows": found, "no_time_for": ["later"], "sanitizer": {}, "minutes": 1}
    lines = gpu_report.table(record).splitlines()
    assert "skipped: not here" in lines[0] and "ValueError" in lines[1]
    assert all(word in lines[2] for word in ("2.0 us", "MISSED", "peer 3.00x")) and lines[3].endswith("no time left")


def test_late_rows_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_checks, "run", lambda *_, **__: {"made up": None})
    record = gpu_report.report("cpu", -1, tmp_path, ["code_sums"], dry=True)
    assert record["rows"] == [] and record["no_time_for"] == [name for name, *_ in gpu_report.rows(["code_sums"])]
    assert json.loads((tmp_path / "dry-run.json").read_text())["no_time_for"]


def test_a_wrong_kernel_is_named(monkeypatch):
    def wrong():
        raise AssertionError("two runs differ")

    monkeypatch.setattr(gpu_checks, "checks", lambda *_: {"good": lambda: None, "bad": wrong})
    assert gpu_checks.run("cpu", tiny=True) == {"good": None, "bad": "AssertionError: two runs differ"}


def test_checks_can_fail(monkeypatch):
    exact = gpu_checks.nearest_code
    monkeypatch.setattr(gpu_checks, "nearest_code", lambda x, codebook: (exact(x, codebook) + 1) % len(codebook))
    faults = gpu_checks.run("cpu", tiny=True)
    assert faults["nearest_code gaussian 33x40x8 torch.float32"].startswith("AssertionError")
    assert faults["nearest_code all_equal 33x40x8 torch.float32"] is None  # any code is nearest
    calls = iter(range(100))
    monkeypatch.setattr(gpu_checks, "_entropy", lambda device: exact.__globals__["torch"].tensor([float(next(calls))]))
    assert gpu_checks.run("cpu", tiny=True)["patch_entropy again"] == "AssertionError: two runs differ"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"seconds": 1.0}, True),
        ({"seconds": 0.9}, False),
        ({"speedup": {"a": 2}}, True),
        ({"speedup": {"a": 3}}, False),
        ({"speedup": {"b": 2}}, None),
        ({"seconds": 1.0, "speedup": {"a": 2, "b": 2}}, None),
        ({"seconds": 0.9, "speedup": {"b": 2}}, False),
    ],
)
def test_met(target, expected):
    assert rows.met(target, 1.0, {"a": 2.0}) is expected


def test_compare_writes_a_row(monkeypatch):
    benchmark = gpu_report.Benchmark("cpu")
    seconds = rows.compare(benchmark, "cpu", lambda: 1, {"peer": lambda: 2}, waits={"slow": lambda: 3}, shape=[4])
    assert seconds.keys() == {"dqcore", "peer", "slow"} and benchmark.times
    info = benchmark.extra_info
    assert info["peers"].keys() == info["speedup"].keys() == {"peer", "slow"} and info["launched_one_by_one"] == [
        "slow"
    ]
    assert "met" not in info  # only a GPU is held to a target


def test_clocks_and_power_are_read(monkeypatch):
    machine = importlib.import_module("machine")
    line = "NVIDIA H200, 580.1, P0, 1980 MHz, 3201 MHz, 1980 MHz, 100 W, 700 W, 40, 0x0\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout=line))
    assert machine.power()["clocks.sm"] == "1980 MHz" and machine.power()["temperature.gpu"] == "40"
    assert machine.name_of({"gpu": "NVIDIA H200", "cpu": "x"}) == "h200"
    assert machine.name_of({"gpu": None, "cpu": "AMD EPYC"}) == "amd-epyc"
