"""A prior's resumed run reaches the numbers of one that was never stopped."""

import json
from dataclasses import replace

import pytest
import torch
from prior_runs import options, quiet

from dqcore.training.prior import build
from dqcore.training.prior.run import train_prior
from dqcore.training.prior.start import start_from_codes


class Stopped(Exception):
    pass


def test_resumed_runs_reach_the_same_numbers(folder, tmp_path):
    fields = {"views": 2, "classes": True, "label_dropout": 0.2, "average_decay": 0.9, "validation_share": 0.1}
    whole = train_prior(options(folder, tmp_path / "whole", **fields), progress=quiet)

    def stop(row):
        if row["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train_prior(options(folder, tmp_path / "parts", **fields), progress=stop)
    parts = train_prior(options(folder, tmp_path / "parts", resume=True, **fields), progress=quiet)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)
    drop = {"images_per_second"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in whole.metrics] == [
        {k: v for k, v in row.items() if k not in drop} for row in parts.metrics
    ]
    assert whole.classes == ("bright", "dark")
    assert json.loads((whole.path / "model" / "classes.json").read_text()) == ["bright", "dark"]
    assert {"content_loss_0", "position_loss_1", "bits_per_image", "gradient_norm"} <= whole.metrics[0].keys()
    assert whole.metrics[-1]["val_bits_per_image"] > 0
    bits = f"{whole.metrics[-1]['val_bits_per_image']:.4g}"
    assert f"| bits per held-out image | {bits} |" in (whole.path / "model" / "README.md").read_text()


def test_a_resumed_run_makes_its_start_no_second_time(folder, tmp_path, monkeypatch):
    seen = []

    def counted(*words):
        seen.append(words)
        start_from_codes(*words)

    monkeypatch.setattr(build, "start_from_codes", counted)
    asked = options(folder, tmp_path / "run", start="codes", steps=1)
    first = train_prior(asked, progress=quiet)
    again = train_prior(replace(asked, steps=2, resume=True), progress=quiet)
    assert len(seen) == 1 and again.metrics[: len(first.metrics) - 1] == first.metrics[:-1]


def test_a_resumed_run_that_is_refused_keeps_its_codes(folder, tmp_path):
    asked = options(folder, tmp_path / "run", steps=1)
    train_prior(asked, progress=quiet)
    before = {path: path.read_bytes() for path in asked.out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="seed: the run was started with"):
        train_prior(replace(asked, seed=5, resume=True), progress=quiet)
    assert {path: path.read_bytes() for path in asked.out.rglob("*") if path.is_file()} == before


def test_a_resumed_prior_keeps_its_split(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="dqcore")
    with monkeypatch.context() as before:
        before.setattr(build, "least_held_out", lambda count: 1)
        train_prior(options(folder, tmp_path / "run", steps=1), progress=quiet)
    train_prior(options(folder, tmp_path / "run", steps=2, resume=True), progress=quiet)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["codes"]["held_out"] == 1
    train_prior(options(folder, tmp_path / "fresh", steps=1), progress=quiet)
    assert json.loads((tmp_path / "fresh" / "config.json").read_text())["codes"]["held_out"] == 2
    assert [f"{24 - held} images to train on, {held} held out" in caplog.text for held in (1, 2)] == [True, True]
