"""Every experiment runs from its arms to its sentences, on tiny networks; its files say what made them."""

import json

import pytest

from dqcore.experiments import EXPERIMENTS, read_results, write_summary
from dqcore.report.results import write_results


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_and_says_what_it_found(name, run_all, tmp_path):
    experiment = EXPERIMENTS[name]
    setting, lines = run_all(experiment)
    arms = experiment.arms(setting.scale, 1)
    results = read_results(setting.out / name)
    assert set(results.arms) == {arm.name for arm in arms}
    assert len(arms) == len(results.rows)
    assert sum("measured" in line for line in lines) in (0, len(arms))  # 0: another test of this folder came first
    for row in results.rows:
        assert row["arm"]["data"] == setting.photos.hash and row["arm"]["options"]["steps"] == 2
        assert row["seconds"]["training"] > 0 and row["made_by"]["dqcore"] == "0"
    summary = write_summary(experiment, setting.out)
    assert json.loads((setting.out / name / "summary.json").read_text()) == json.loads(json.dumps(summary))
    # With one seed nothing is said about designs, but everything is in place.
    assert summary["claims"] and {claim["verdict"] for claim in summary["claims"]} == {"cannot be said at this scale"}
    assert all(len(row) == len(table["columns"]) for table in summary["tables"] for row in table["rows"])
    assert write_results([summary], tmp_path / "page.md").is_file()


def test_a_finished_experiment_is_not_run_again(run_all):
    experiment = EXPERIMENTS["router"]
    setting, _ = run_all(experiment)
    before = {path: path.stat().st_mtime_ns for path in setting.out.rglob("*.json")}
    _, lines = run_all(experiment)
    assert lines == []
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_arms_in_common_are_trained_once(run_all):
    run_all(EXPERIMENTS["router"])
    _, lines = run_all(EXPERIMENTS["maps"])
    assert not any("trained gain-r0.5" in line for line in lines)
