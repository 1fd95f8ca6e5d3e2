"""What a row says of itself, and the file that rows are kept in."""

import json
import types

import machine
import pytest
import report_rows
import rows


def test_a_file_keeps_what_a_run_did_not_measure(tmp_path):
    keep, path = machine.keep, tmp_path / "gpu.json"
    rows = [{"name": name, "median": 1.0, "extra_info": {}} for name in "ab"]
    keep(path, {"machine": {"gpu": "X"}, "versions": {"torch": "1"}, "checks": {"c": None}, "rows": rows})
    again = [{"name": "b", "median": 2.0}, {"name": "a", "skipped": "not now"}, {"name": "new", "skipped": "never"}]
    keep(path, {"machine": {"gpu": "X"}, "versions": {"torch": "2"}, "rows": again})
    record = json.loads(path.read_text())
    assert [(row["name"], row.get("median"), row["versions"]["torch"]) for row in record["rows"]] == [
        ("a", 1.0, "1"),
        ("b", 2.0, "2"),
        ("new", None, "2"),
    ]
    assert record["checks"] == {"c": None} and list(record)[:2] == ["machine", "unit"]
    keep(path, {"versions": {"torch": "3"}, "ceilings": {}, "rows": []})
    assert json.loads(path.read_text())["versions_of"] == {"checks": {"torch": "1"}, "ceilings": {"torch": "3"}}
    failed = [{"name": name, "failed": "no memory"} for name in "ab"]
    keep(path, {"versions": {"torch": "2"}, "rows": failed})  # which measured b and not a
    a, b, _ = json.loads(path.read_text())["rows"]
    assert "median" not in a and a["failed"] == b["failed_again"] == "no memory" and b["median"] == 2.0


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


def test_a_row_is_held_against_its_own_fields():
    benchmark = report_rows.Benchmark("cpu")
    benchmark.extra_info |= {"images_per_second": 66.0, "share_of_wide": 0.5}
    rows.hold(benchmark, {"images_per_second": 100}, {"share_of_wide": 0.65})
    assert benchmark.extra_info["met"] is False
    assert benchmark.extra_info["target"] == {
        "at_least": {"images_per_second": 100},
        "at_most": {"share_of_wide": 0.65},
    }
    rows.hold(benchmark, at_most={"share_of_wide": 0.65})
    assert benchmark.extra_info["met"] is True


def test_compare_writes_a_row(monkeypatch):
    benchmark = report_rows.Benchmark("cpu")
    seconds = rows.compare(benchmark, "cpu", lambda: 1, {"peer": lambda: 2}, waits={"slow": lambda: 3}, shape=[4])
    assert seconds.keys() == {"dqcore", "peer", "slow"} and benchmark.times
    info = benchmark.extra_info
    assert info["peers"].keys() == info["speedup"].keys() == {"peer", "slow"} and info["launched_one_by_one"] == [
        "slow"
    ]
    assert "met" not in info  # only a GPU is held to a target


def test_clocks_and_power_are_read(monkeypatch):
    line = "NVIDIA H200, 580.1, P0, 1980 MHz, 3201 MHz, 1980 MHz, 100 W, 700 W, 40, 0x0\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout=line))
    assert machine.power()["clocks.sm"] == "1980 MHz" and machine.power()["temperature.gpu"] == "40"
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout=""))
    assert machine.power() is None
    assert machine.name_of({"gpu": "NVIDIA H200", "cpu": "x"}) == "h200"
    assert machine.name_of({"gpu": None, "cpu": "AMD EPYC"}) == "amd-epyc"
