"""Every experiment runs from its arms to its sentences, on tiny networks; its files say what made them."""

import dataclasses
import json

import pytest
from PIL import Image

import dqcore
from dqcore.experiments import EXPERIMENTS, learning, read_results, write_summary
from dqcore.experiments.arms import with_needs
from dqcore.experiments.maps import correlate
from dqcore.experiments.train import train_arm
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


def test_a_run_too_short_to_keep_a_model_is_measured_at_its_end(setting_in, tmp_path):
    """As with ``--minutes-per-run``."""
    setting = setting_in(tmp_path)
    setting = dataclasses.replace(setting, scale=dataclasses.replace(setting.scale, keep_every=100))
    arm = learning.arms(setting.scale, 1)[-1]
    for each in with_needs([arm]):
        train_arm(each, setting)
    found = learning.measure(arm, setting)
    assert [step for step, _ in found["psnr"]] == [2] and found["first"]["psnr"] == found["last"]["psnr"]


def test_photos_of_one_region_have_no_rank_of_their_own(tmp_path):
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny").eval()
    photos = [tmp_path / f"{color}.png" for color in ("red", "blue")]
    for photo in photos:
        Image.new("RGB", (16, 16), photo.stem).save(photo)
    assert correlate(model, model, photos)["scores"]["mean of photos"] is None
    nothing = {"all regions": None, "mean of photos": None}
    assert correlate(model, model, photos[:1]) == {"scores": nothing, "grain": nothing}


def test_arms_in_common_are_trained_once(run_all):
    run_all(EXPERIMENTS["router"])
    _, lines = run_all(EXPERIMENTS["maps"])
    assert not any("trained gain-r0.5" in line for line in lines)
