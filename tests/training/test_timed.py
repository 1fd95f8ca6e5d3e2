"""Runs whose length is in minutes: the learning rate falls with time, a resumed run has what is left."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch

from dqcore.training import train_tokenizer
from dqcore.training.clock import Clock
from dqcore.training.estimate import Estimate
from dqcore.training.schedule import LearningRate, TimedLearningRate
from dqcore.training.state import read_state


def test_a_timed_learning_rate():
    rate = TimedLearningRate(2.0, warmup=4, seconds=60.0, decay="cosine")
    assert [rate(step, 0.0) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate(9, 30.0) == pytest.approx(1.0) and rate(9, 60.0) == rate(9, 90.0) == 0.0
    assert rate.share(9, 15.0) == 0.25
    assert TimedLearningRate(2.0, warmup=0, seconds=60.0)(0, 59.0) == 2.0


def test_a_run_of_minutes_ends_in_time_and_can_be_made_longer(tiny, options, monkeypatch):
    monkeypatch.setattr(Clock, "seconds", property(lambda self: self.before + self.ticks()), raising=False)
    count = [0.0]
    monkeypatch.setattr(Clock, "ticks", lambda self: count.__setitem__(0, count[0] + 1.0) or count[0], raising=False)
    timed = {"steps": None, "schedule": "cosine"}
    run = train_tokenizer(options(minutes=0.1, **timed), model=tiny(), progress=lambda row: None)
    steps = [row for row in run.metrics if "loss" in row]
    assert 3 <= len(steps) <= 6 and "val_psnr" in run.metrics[-1]
    rates = [row["learning_rate"] for row in steps]
    assert rates[-1] < 0.5 * max(rates)
    config = json.loads((run.path / "config.json").read_text())
    assert config["steps"] == len(steps) and config["options"]["minutes"] == 0.1
    spent = read_state(run.path / "checkpoint.pt")["seconds"]
    assert spent >= 6
    count[0] = 0.0
    longer = train_tokenizer(options(minutes=0.3, resume=True, **timed), model=tiny(), progress=lambda row: None)
    more = len([row for row in longer.metrics if "loss" in row]) - len(steps)
    assert 1 <= more <= 18 - spent


def test_a_run_of_steps_has_no_time_in_its_state(tiny, options):
    run = train_tokenizer(options(steps=2), model=tiny(), progress=lambda row: None)
    assert "seconds" not in read_state(run.path / "checkpoint.pt")


def test_checkpoints_by_minutes(tiny, options, monkeypatch):
    from dqcore.training import loop

    seen = []
    monkeypatch.setattr(loop.Loop, "_save", lambda self: seen.append(self.completed))
    often = options(steps=5, checkpoint_every=1000, checkpoint_minutes=1e-9)
    train_tokenizer(often, model=tiny(), progress=lambda row: None)
    assert seen == [1, 2, 3, 4, 5]


def test_an_estimate_after_the_first_steps(caplog):
    caplog.set_level("INFO", logger="dqcore")
    estimate = Estimate(LearningRate(1.0, 0, 1000), start=100)
    told = [estimate.after(100 + step, 50.0 + 2 * (step - 1)) for step in range(1, 8)]
    assert told == [False, False, False, False, True, False, False]
    assert estimate.tell(105) is None
    assert caplog.messages == ["about 29 min 50 s to go: 1000 steps of 2 s"]
    timed = Estimate(TimedLearningRate(1.0, 0, 60.0), start=0)
    assert [timed.after(step, 2.0 * step) for step in range(1, 6)][-1]
    assert timed.tell(5) is None and caplog.messages[1] == "about 30 steps in 1 min: 2 s each so far"


def test_a_run_of_days_is_warned_of_and_asked_about(tiny, options, caplog, monkeypatch):
    from dqcore.training import StoppedError, estimate

    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    monkeypatch.setattr(estimate, "DAY", 1e-9)
    asked = []
    with pytest.raises(StoppedError, match="after step 5"):
        train_tokenizer(options(), model=tiny(), progress=lambda row: None, confirm=asked.append)
    assert len(asked) == 1 and asked[0].startswith("This will take about ") and asked[0].endswith("Go on?")
    assert any("--minutes M" in message for message in caplog.messages)
    assert read_state(options().out / "checkpoint.pt")["step"] == 5
    run = train_tokenizer(options(resume=True), model=tiny(), progress=lambda row: None, confirm=lambda question: True)
    assert run.metrics[-1]["step"] == 8


def test_processes_agree_without_waiting_for_a_gpu(monkeypatch):
    """A tensor without values stands for a GPU's."""
    world = SimpleNamespace(size=2, is_main=True, device=torch.device("meta"), sum=lambda values: values)
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    assert Clock(world).agree(signal.SIGTERM).signal == signal.SIGTERM
    monkeypatch.setattr("torch.distributed.get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(RuntimeError):
        Clock(world).agree(0)
