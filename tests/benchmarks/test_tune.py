import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import compile_measure
import tune
import tune_problems
from triton.runtime.errors import OutOfResources

from dqcore import backends
from dqcore.kernels import tuned

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in tuned.TABLES.glob("*.json"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Copies of the shipped tables, and a place for results."""
    for path in tuned.TABLES.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(tune, "TABLES", tmp_path)
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    monkeypatch.setattr(tune, "RESULTS", tmp_path)
    tuned.forget()
    yield tmp_path
    tuned.forget()


def test_every_table_is_swept():
    assert set(SHIPPED) <= set(tune_problems.STEMS)
    for stem in SHIPPED:
        whens = [row["when"] for row in tune.rows_of(stem, 90)]
        assert any(when in whens for when in tune_problems.STEMS[stem].first), stem
        configs = tune.candidates(stem)
        assert all(config.keys() == configs[0].keys() for config in configs)
        assert tune.rows_of(stem, 90)[0]["config"] in configs


def test_important_rows_come_first():
    rows = tune.work(90, SHIPPED)
    first = sum(when in tune_problems.STEMS[stem].first for stem, when in rows)
    assert 0 < first < len(rows)
    assert all(when in tune_problems.STEMS[stem].first for stem, when in rows[:first])


@pytest.mark.slow
@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("stem", SHIPPED)
def test_a_sweep_writes_a_table(folder, stem, monkeypatch, capsys):
    """Every line of a measurement but the GPU's clock, on interpreted kernels; with one row, which stands for all."""
    only = [row for row in tune.rows_of(stem, 80) if row["when"] in tune_problems.STEMS[stem].first][:1]
    monkeypatch.setattr(tune, "work", lambda arch, stems: [(stem, row["when"]) for row in only])
    before = tune.rows_of(stem, 86)
    record = tune.tune([stem], 86, "cpu", minutes=10, tiny=True)
    (entry,) = record["sweep"]
    best = entry["measured"][0]
    assert best["error"] <= 2e-2 and best["seconds"] > 0
    table = json.loads((folder / f"{stem}.json").read_text())
    assert table["86"]["source"].startswith("measured on ") and "not measured: " in table["86"]["source"]
    assert [row["when"] for row in table["86"]["rows"]] == [row["when"] for row in before]
    for row, old in zip(table["86"]["rows"], before, strict=True):
        assert row["config"] == (best["config"] if row["when"] == only[0]["when"] else old["config"])
    assert table["90"] == json.loads((ROOT / "kernels" / "tables" / f"{stem}.json").read_text())["90"]
    assert tuned.table(stem)
    assert json.loads(next(folder.glob("tune-*.json")).read_text())["arch"] == 86
    assert f"{stem} {only[0]['when']}: " in capsys.readouterr().out


def test_a_wrong_or_failing_candidate_is_left_out(monkeypatch):
    def run():
        config = tuned.config("made_up")
        if config["X"] == 3:
            raise OutOfResources(300000, 232448, "shared memory")
        return (torch.full((4,), 2.0 if config["X"] == 2 else 1.0),)

    problem = tune_problems.Problem(run, lambda: (torch.ones(4),), 1e-3)
    stem = tune_problems.Stem("made_up", "_made_up_kernel", lambda *_: problem, [], {}, {})
    monkeypatch.setitem(tune_problems.STEMS, "made_up", stem)
    clock = {1: 3.0, 4: 1.0, 5: 2.0}
    monkeypatch.setattr(tune, "_times", lambda *_: [clock[tuned.config("made_up")["X"]]] * 3)
    rows = tune.measure_row("made_up", {}, [{"X": x} for x in (1, 2, 3, 4, 5)], "cpu", tiny=False)
    assert [row["config"]["X"] for row in rows] == [4, 5, 1, 2, 3]
    assert rows[3]["left_out"] == "wrong by 1" and rows[4]["left_out"].startswith(
        "OutOfResources: out of resource: shared memory"
    )


def test_no_time_left(folder, monkeypatch, capsys):
    monkeypatch.setattr(tune, "compile_all", lambda rows, arch: [[] for _ in rows])
    before = (folder / "nearest_code.json").read_text()
    record = tune.tune(["nearest_code"], 90, "cpu", minutes=-1)
    assert record["sweep"] and not any("measured" in entry for entry in record["sweep"])
    assert (folder / "nearest_code.json").read_text() == before
    assert "no time left" in capsys.readouterr().out


def test_what_was_measured_before_a_fault_or_an_interrupt_is_kept(folder, monkeypatch, capsys):
    rows = tune.work(90, ["nearest_code"])
    good = tune.candidates("nearest_code")[0]
    found = iter([torch.OutOfMemoryError("no room"), [{"config": good, "seconds": 1e-6}], KeyboardInterrupt()])

    def measured(*_):
        answer = next(found)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(tune, "compile_all", lambda rows, arch: [[] for _ in rows])
    monkeypatch.setattr(tune, "measure_row", measured)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(["nearest_code"], 90, "cpu", minutes=1)
    table = json.loads((folder / "nearest_code.json").read_text())["90"]
    assert "measured on " in table["source"]
    assert next(row for row in table["rows"] if row["when"] == rows[1][1])["config"] == good
    sweep = json.loads(next(folder.glob("tune-*.json")).read_text())["sweep"]
    assert sweep[0]["left_out"] == "OutOfMemoryError: no room" and sweep[1]["measured"] and len(sweep) == 2
    assert "no room" in capsys.readouterr().out


def test_distance():
    ones = torch.ones(4)
    assert tune_problems.distance((ones, ones), (ones, 2 * ones)) == 0.5
    assert tune_problems.distance((torch.arange(6),), (torch.tensor([0, 1, 2, 4]),)) == 0.25
    assert not tune_problems.distance((ones * float("nan"),), (ones,)) <= 1


SCRIPT = """
import json, sys
sys.path.insert(0, "benchmarks")
import compile_measure, tune
good = tune.rows_of("nearest_code", 90)[0]["config"]
tune.candidates = lambda stem: [good, good | {"BLOCK_N": 48}, good | {"BLOCK_D": 256, "num_stages": 9}]
rows = tune.compile_row("nearest_code", {"width": 256}, 90)
compile_measure.show([("nearest_code", {"width": 256})], [rows])
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_compiling_tells_what_a_candidate_takes():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *shown, line = done.stdout.splitlines()
    good, bad, large = json.loads(line)
    assert good["left_out"] is None and good["compiled"][0]["instructions_per_element"] > 1
    assert bad["left_out"] and not bad["compiled"]
    assert "bytes of shared memory" in large["left_out"]
    assert len(shown) == 4 and "resident" in shown[1]


def test_resident_blocks():
    row = {"registers": 128, "num_warps": 8, "shared_bytes": 60000, "shared_limit": 227 * 1024}
    assert compile_measure.resident(row) == 2
    assert compile_measure.resident(row | {"registers": 32}) == 3
    assert compile_measure.resident(row | {"registers": 32, "shared_bytes": 0}) == 8


FIRST = """
import sys
sys.path.insert(0, "benchmarks")
import compile_measure
import tune
tune.candidates = lambda stem: [{"BLOCK_M": 32, "BLOCK_N": 32, "CHUNK": 256, "num_warps": 4, "num_stages": 1}]
(row,) = tune.compile_row("varlen_attention_dkv", {"dtype": "half", "dim": 64, "dropout": 0}, 90)
print(row["left_out"], {found["stack_bytes"] for found in row["compiled"]})
"""


@pytest.mark.slow
def test_a_problem_that_launches_first_finds_a_driver():
    """In a process that has compiled nothing yet, as each of a sweep's is."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stdout.strip() == "None {0}", done.stdout + done.stderr
