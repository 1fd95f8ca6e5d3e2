"""The loop with a stage of a single parameter: what is written when, and that resumption continues it."""

import contextlib
import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dqcore.distributed import World
from dqcore.training import train_tokenizer
from dqcore.training.clock import Clock
from dqcore.training.loop import Loop, NonFiniteLossError, NonFiniteWeightsError
from dqcore.training.schedule import LearningRate
from dqcore.training.stage import TrainingStep, all_finite
from dqcore.training.state import read_state

WORLD = World(0, 1, torch.device("cpu"))


@dataclass
class _Counting:
    """A batch is the number of its step; the model's bias adds them up."""

    step: TrainingStep
    broken: set = field(default_factory=set)
    saved: list = field(default_factory=list)
    folders: list = field(default_factory=list)
    fails_in: int = -1
    pictured: str = "numbers"

    def batches(self, start, stop):
        return range(start, stop)

    def train(self, batch, completed, learning_rate):
        assert batch == completed
        if batch == self.fails_in:
            raise NonFiniteLossError("loss", completed + 1, float("nan"))
        self.step.model.bias.data += batch
        self.broken.add(f"file {batch % 2}")
        return {"loss": float(batch)}, 10

    def status(self):
        return {"use": 0.5}

    def validate(self):
        return {"val_loss": float(self.step.model.bias.detach())}

    def settled(self):
        return contextlib.nullcontext()

    def picture(self):
        return torch.full((3, 4, 6), float(self.step.model.bias.detach()) / 40)

    def save_model(self, folder):
        self.saved.append(float(self.step.model.bias.detach()))
        self.folders.append(folder.name)

    def contents_of(self, batch):
        return {"number": batch}

    def blame(self, batch):
        return "nobody"


def _loop(out, total, keep_every=None, **changes):
    stage = _Counting(TrainingStep(nn.Linear(1, 1), WORLD, None), **changes)
    nn.init.zeros_(stage.step.model.bias)
    times = {"log_every": 3, "validate_every": 4, "checkpoint_every": 5, "checkpoint_minutes": 9.0}
    options = SimpleNamespace(out=out, tensorboard=False, keep_every=keep_every, **times)
    return Loop(stage, options, Clock(WORLD), LearningRate(0.5, 0, total))


def _numbers(rows):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_models_are_kept(tmp_path):
    loop = _loop(tmp_path, 7, keep_every=3)
    loop.run(None)
    assert loop.stage.folders == ["0000003", "model", "0000006", "model"]


def test_everything_has_its_time(tmp_path):
    loop = _loop(tmp_path, 7)
    rows = loop.run(lambda row: None)
    assert [(row["step"], *row.keys() & {"loss", "val_loss"}) for row in rows] == [
        *[(1, "loss"), (3, "loss"), (4, "val_loss"), (6, "loss"), (7, "loss"), (7, "val_loss")]
    ]
    assert list(rows[0]) == ["step", "loss", "learning_rate", "use", "images_per_second"]
    assert rows[0]["learning_rate"] == 0.5 and rows[0]["images_per_second"] > 0
    assert loop.completed == 7 and loop.stage.saved == [10, 21]
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == ["00000004.png", "00000007.png"]
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["step"], status["total"], status["seconds_left"]) == (7, 7, 0) and status["memory_gib"] > 0
    state = read_state(tmp_path / "checkpoint.pt")
    assert (state["step"], state["broken"], state["model"]["bias"].item()) == (7, ["file 0", "file 1"], 21)


def test_the_time_of_a_validation_is_none_of_training(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    loop = _loop(tmp_path, 6)
    train, validate = loop.stage.train, loop.stage.validate
    loop.stage.train = lambda *args: now.__setitem__(0, now[0] + 1 + args[1]) or train(*args)  # each step is longer
    loop.stage.validate = lambda: now.__setitem__(0, now[0] + 100) or validate()  # after step 4: between two rows
    rows = loop.run(lambda row: None)
    assert [row["images_per_second"] for row in rows if "loss" in row] == [10 / 1, 20 / (2 + 3), 30 / (4 + 5 + 6)]


def test_slow_steps_have_a_row_each(tmp_path, monkeypatch):
    monkeypatch.setattr("dqcore.training.loop.ROW_SECONDS", 0.0)
    assert [row["step"] for row in _loop(tmp_path, 4).run(lambda row: None) if "loss" in row] == [1, 2, 3, 4]


def test_time_goes_on_where_a_run_is_resumed():
    clock = Clock(WORLD)
    clock.before = 50.0
    assert 50 <= clock.seconds < 60


def test_one_number_that_is_not_finite_is_enough():
    assert all_finite(lambda: torch.ones(2)) and not all_finite(lambda: torch.tensor([1.0, torch.nan]))
    assert all_finite(lambda: [][0])  # what cannot be computed explains nothing


def test_a_resumed_loop_continues(tmp_path):
    whole = _loop(tmp_path / "whole", 9).run(lambda row: None)
    _loop(tmp_path / "parts", 5).run(lambda row: None)
    rest = _loop(tmp_path / "parts", 9)
    torch.rand(3)  # as whatever a new process draws
    rest.resume()
    assert rest.completed == 5 and rest.stage.broken == {"file 0", "file 1"}
    assert torch.equal(torch.get_rng_state(), read_state(tmp_path / "parts" / "checkpoint.pt")["random"][0][0])
    rows = rest.run(lambda row: None)
    assert _numbers(rows)[-4:] == _numbers(whole)[-4:]
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_loss_that_is_not_finite_is_kept(tmp_path):
    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan in step 7; nobody; the batch and the state are in .*nonfinite"
    ):
        _loop(tmp_path, 9, fails_in=6).run(lambda row: None)
    state = read_state(tmp_path / "nonfinite.pt")
    assert (state["step"], state["number"], state["term"], state["model"]["bias"].item()) == (6, 6, "loss", 15)
    assert read_state(tmp_path / "checkpoint.pt")["step"] == 5


def test_a_loss_that_is_not_finite_names_the_image(tiny, options, pictures, monkeypatch):
    """The model gives NaN for the first crop that it ever sees."""
    model = tiny()
    forward, bad = model.forward, []

    def spoiled(images):
        output = forward(images)
        bad.append(images[:1]) if not bad else None
        same = (images == bad[0]).flatten(1).all(1)[:, None, None, None]
        return output._replace(reconstruction=output.reconstruction.masked_fill(same, torch.nan))

    monkeypatch.setattr(model, "forward", spoiled)
    with pytest.raises(NonFiniteLossError, match=r"_loss is nan in step 1; it comes of \S+\.png; the batch"):
        train_tokenizer(options(steps=2, flip=False), model=model, progress=lambda row: None)


@pytest.mark.parametrize("changes", [{"checkpoint_every": 3}, {"keep_every": 3, "checkpoint_every": 100}])
def test_weights_that_are_not_finite_are_not_saved(tiny, options, changes):
    def spoil(row):
        if row["step"] == 3 and "loss" in row:
            model.quant_conv.bias.data[0] = torch.inf

    model = tiny()
    with pytest.raises(NonFiniteWeightsError, match=r"quant_conv\.bias holds NaN or infinite numbers after step 3"):
        train_tokenizer(options(**changes), model=model, progress=spoil)
    assert not (options().out / "checkpoint.pt").exists() and not (options().out / "kept").exists()
