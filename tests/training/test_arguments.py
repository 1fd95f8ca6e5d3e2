"""A run is resumed from its own config: what is named is changed, the rest stays."""

import json
import math
from pathlib import Path

import pytest

from dqcore.cli.given import named_options, naming
from dqcore.errors import InputError
from dqcore.training import PriorTraining, TokenizerTraining, train_tokenizer


def test_options_of_a_run(tiny, options, caplog):
    caplog.set_level("INFO", logger="dqcore")
    run = train_tokenizer(options(steps=2, target_ratio=(0.25,)), model=tiny(), progress=lambda row: None)
    same = TokenizerTraining.of_run(run.path)
    assert same.resume and same.data == options().data and same.target_ratio == (0.25,)
    assert (same.steps, same.epochs, same.batch_size, same.perceptual) == (2, None, 4, "none")
    caplog.clear()
    changed = TokenizerTraining.of_run(run.path, minutes=0.5, workers=0, out=run.path, resume=True)
    assert (changed.steps, changed.minutes) == (None, 0.5)
    assert caplog.messages == ["minutes: the run had None, now 0.5"]
    longer = train_tokenizer(TokenizerTraining.of_run(run.path, steps=3), model=tiny(), progress=lambda row: None)
    assert longer.metrics[-1]["step"] == 3


def test_what_cannot_be_changed_is_an_error(tiny, options):
    run = train_tokenizer(options(steps=1), model=tiny(), progress=lambda row: None)
    with pytest.raises(ValueError, match="batch_size: the run was started with 4, got 5"):
        train_tokenizer(TokenizerTraining.of_run(run.path, batch_size=5), model=tiny())


def test_old_names_and_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run to resume in"):
        TokenizerTraining.of_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"options": {"data": "photos", "packed": True}}))
    assert TokenizerTraining.of_run(tmp_path).in_memory and TokenizerTraining.of_run(tmp_path).data == Path("photos")
    (tmp_path / "config.json").write_text(json.dumps({"options": {"data": "photos", "magic": 1}}))
    with pytest.raises(ValueError, match="option 'magic' that this version does not know"):
        TokenizerTraining.of_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"options": {"data": "photos", "tokenizer": "model"}}))
    assert PriorTraining.of_run(tmp_path).recipe == "paper"  # there was no other
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        PriorTraining.of_run(tmp_path)


def test_which_options_were_named():
    words = ["--batch-size=2", "--no-flip", "--packed", "--out", "x-seed", "photos"]
    known = ["out", "seed", "flip", "in_memory", "batch_size"]
    with naming(words):
        assert named_options(known, {"packed": "in_memory"}) == ["out", "flip", "in_memory", "batch_size"]
    assert named_options(known) == []


@pytest.mark.parametrize("options", ['"x"', "[1]", '{"steps": "many", "data": "x"}', '{"batch_size": {}, "data": "x"}'])
def test_damaged_options_are_one_clear_error(tmp_path, options):
    (tmp_path / "config.json").write_text(f'{{"options": {options}}}')
    with pytest.raises(ValueError, match=r"resume: .*config\.json cannot be read"):
        TokenizerTraining.of_run(tmp_path)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_both_stages_refuse_a_time_that_is_none(value):
    for kind, data in ((TokenizerTraining, {}), (PriorTraining, {"tokenizer": "model"})):
        for name in ("minutes", "checkpoint_minutes", "timeout"):
            with pytest.raises(InputError, match=f"{name}: expected more than 0, got"):
                kind(data="photos", out=Path("run"), **data, **{name: value})
