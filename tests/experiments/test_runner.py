"""Results are resumable: what was killed goes on from its checkpoint, what is finished stays, others are refused."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dqcore.data.listing import list_images
from dqcore.errors import InputError
from dqcore.experiments import EXPERIMENTS, SCALES, Experiment, Setting, find_photos, run_experiments, say_plan, train
from dqcore.experiments.arms import dual
from dqcore.experiments.measure import metrics_of
from dqcore.experiments.runner import is_measured, measure_arm


def one_arm(scale, seeds):
    """An experiment of one arm, which measures how many rows its training logged."""
    options = {**scale.tokenizer, "steps": 4, "checkpoint_every": 1}
    return [dataclasses.replace(dual(scale, seed, "gain"), options=options) for seed in range(seeds)]


ONE = Experiment("one", one_arm, lambda arm, setting: {"rows": len(metrics_of(arm, setting))}, lambda results: {})


def comparable(rows):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_a_killed_arm_goes_on_to_the_same_numbers(setting_in, tmp_path, monkeypatch):
    whole = setting_in(tmp_path / "whole")
    run_experiments([ONE], whole, 1)
    (arm,) = one_arm(whole.scale, 1)

    broken = setting_in(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_quiet", lambda row: 1 / (row["step"] < 3))
        with pytest.raises(ZeroDivisionError):
            run_experiments([ONE], broken, 1)
    assert (broken.run_folder(arm) / "checkpoint.pt").is_file()
    assert not train.is_trained(arm, broken) and not broken.result_file("one", arm).exists()

    run_experiments([ONE], broken, 1)
    assert comparable(metrics_of(arm, broken)) == comparable(metrics_of(arm, whole))
    weights = [(setting.run_folder(arm) / "model" / "model.safetensors").read_bytes() for setting in (whole, broken)]
    assert weights[0] == weights[1]
    results = [json.loads(setting.result_file("one", arm).read_text()) for setting in (whole, broken)]
    assert [result["resumed"] for result in results] == [False, True]
    assert results[0]["arm"] == results[1]["arm"] and results[0]["measured"] == results[1]["measured"]

    scale = dataclasses.replace(broken.scale, tokenizer={**broken.scale.tokenizer, "batch_size": 3})
    with pytest.raises(InputError, match=r"finished\.json was made with batch_size 2, now it is 3"):
        run_experiments([ONE], dataclasses.replace(broken, scale=scale), 1)
    photos = dataclasses.replace(broken.photos, hash="other")
    with pytest.raises(InputError, match=f"made with data {broken.photos.hash}, now it is other"):
        run_experiments([ONE], dataclasses.replace(broken, photos=photos), 1)


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", '{"arm": null}'])
def test_damaged_notes_are_named(setting_in, tmp_path, text):
    """Those of a finished run and those of a measured arm."""
    setting = setting_in(tmp_path)
    (arm,) = one_arm(setting.scale, 1)
    for path, look in (
        (setting.run_folder(arm) / "finished.json", lambda: train.is_trained(arm, setting)),
        (setting.result_file("one", arm), lambda: is_measured(ONE, arm, setting)),
    ):
        assert not look()
        path.parent.mkdir(parents=True)
        path.write_text(text)
        with pytest.raises(InputError, match=f"out: {re.escape(str(path))} is damaged"):
            look()


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", "text"), ("seconds", float("nan")), ("seconds", -1.0), ("made_by", [1]), ("resumed", None)],
)
def test_a_note_of_another_kind_is_named(setting_in, tmp_path, name, value):
    setting = setting_in(tmp_path)
    (arm,) = one_arm(setting.scale, 1)
    path = setting.run_folder(arm) / "finished.json"
    notes = {"arm": setting.described(arm), "made_by": {}, "seconds": 1.0, "resumed": False}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notes | {name: value}))
    experiment = dataclasses.replace(ONE, measure=lambda *_: {})
    with pytest.raises(InputError, match=rf"finished\.json is damaged \({name}: expected "):
        measure_arm(experiment, arm, setting)


def test_minutes_stand_for_steps(setting_in, tmp_path):
    setting = setting_in(tmp_path, minutes=1e-6)
    run_experiments([ONE], setting, 1)
    (arm,) = one_arm(setting.scale, 1)
    stored = json.loads(setting.result_file("one", arm).read_text())["arm"]["options"]
    assert stored["minutes"] == 1e-6 and "steps" not in stored
    assert metrics_of(arm, setting)[-1]["step"] == 1


@pytest.mark.slow
def test_processes_do_what_one_does(setting_in, tmp_path):
    budget = EXPERIMENTS["budget"]
    alone, together = setting_in(tmp_path / "alone"), setting_in(tmp_path / "together")
    run_experiments([budget], alone, 1)
    run_experiments([budget], together, 1, jobs=2)
    for arm in budget.arms(alone.scale, 1):
        rows = [comparable(metrics_of(arm, setting)) for setting in (alone, together)]
        assert rows[0] == rows[1]
        assert together.result_file("budget", arm).is_file()


def test_the_plan_fits_the_promise():
    scale = SCALES["cpu"]
    found = say_plan(list(EXPERIMENTS.values()), setting_of(scale), 3, 2)
    assert len(found) == len(EXPERIMENTS) + 1
    assert "36 of 36 arms to measure" in found[0] and "the packaged sample" in found[-1]
    minutes = sum(_minutes(line) for line in found[:-1])
    assert 30 < minutes <= 90
    assert all(SCALES["gpu"].seconds[kind] < 9 * 60 for kind in ("tokenizer", "prior"))


def setting_of(scale):
    return Setting(scale, find_photos(None, None, scale), Path("nowhere"), None, {})


def _minutes(line):
    words = line.partition("about ")[2].split()
    values = {unit: int(value) for value, unit in zip(words[::2], words[1::2], strict=True)}
    return 60 * values.get("h", 0) + values.get("min", 0) + values.get("s", 0) / 60


def test_photos_that_are_not_there(tmp_path, photos):
    with pytest.raises(InputError, match="data: expected a folder with train/ and val/"):
        find_photos(tmp_path, None, SCALES["cpu"])
    with pytest.raises(FileNotFoundError):
        find_photos(photos, tmp_path / "none", SCALES["cpu"])
    found = find_photos(photos, photos / "val", SCALES["cpu"])
    assert len(found.test) == 2 and len(found.validation) == 2 and "measured on val" in found.name


def test_photos_that_cannot_be_measured_are_refused_before_training(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "mine")
    (tmp_path / "mine" / "val" / "9.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"data: a photo to measure on cannot be read: .*9\.png"):
        find_photos(tmp_path / "mine", None, SCALES["cpu"])
    (tmp_path / "more").mkdir()
    Image.new("RGB", (40, 10)).save(tmp_path / "more" / "flat.png")
    with pytest.raises(InputError, match=r"test: expected .* at least 11 pixels a side, .*flat\.png has 40x10"):
        find_photos(photos, tmp_path / "more", SCALES["cpu"])


def test_photos_that_are_trained_on_are_not_unseen(photos, tmp_path):
    """Whatever they are called."""
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "train" / "3.png", tmp_path / "more" / "x.png")
    shutil.copy(photos / "val" / "8.png", tmp_path / "more" / "y.png")
    with pytest.raises(InputError, match=r"test: 1 of the 2 photos to measure on are in .*train too, such as .*x\.png"):
        find_photos(photos, tmp_path / "more", SCALES["cpu"])
    shutil.copytree(photos, tmp_path / "mine")
    shutil.copy(photos / "train" / "3.png", tmp_path / "mine" / "val" / "8.png")
    with pytest.raises(InputError, match="data: 1 of the 2 photos"):
        find_photos(tmp_path / "mine", None, SCALES["cpu"])


def test_names_of_photos_in_the_list_for_validation(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "mine")
    odd = tmp_path / "mine" / "val" / os.fsdecode(b"caf\xe9.png")
    (tmp_path / "mine" / "val" / "8.png").rename(odd)
    scale = SCALES["cpu"]
    setting = Setting(scale, find_photos(tmp_path / "mine", None, scale), tmp_path / "out", None, {})
    for _ in range(2):
        assert odd.resolve() in list_images(setting.validation_list())
    odd.rename(odd.with_name("a\nb.png"))
    with pytest.raises(InputError, match="data: expected paths without line breaks"):
        find_photos(tmp_path / "mine", None, scale)
