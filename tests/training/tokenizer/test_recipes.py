import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dqcore.distributed import World
from dqcore.training import RECIPES, TokenizerTraining
from dqcore.training.schedule import LearningRate
from dqcore.training.tokenizer.build import new_model, new_schedule


def new_model_config(**options):
    with torch.device("meta"):
        return new_model(TokenizerTraining(data=Path("x"), **options).resolved()).config


@pytest.mark.parametrize(
    ("name", "epochs", "warmup", "crop"), [("ffhq", 150, 5, "random-resized"), ("imagenet", 50, 0.5, "random")]
)
def test_numbers_of_the_supplement(name, epochs, warmup, crop):
    recipe = RECIPES[name]
    assert (recipe.epochs, recipe.warmup_epochs, recipe.crop) == (epochs, warmup, crop)
    assert recipe.base_learning_rate == 0.0000045 and recipe.betas == (0.5, 0.9)
    assert recipe.adversarial_maximum == 0.75 and recipe.perceptual_weight == 1.0
    config = new_model_config(recipe=name)
    assert config.budget_weight == 10 and config.budget == "paper" and not config.restart


def test_numbers_of_the_released_code():
    recipe = RECIPES["released"]
    assert recipe.warmup_epochs == 0.1 and recipe.schedule == "cosine"
    config = new_model_config(recipe="released")
    assert config.restart and config.budget == "released"


def test_learning_rate_grows_with_the_global_batch(tmp_path):
    options = TokenizerTraining(data=tmp_path, recipe="ffhq").resolved()
    rate = new_schedule(options, 250, World(0, 8, None))
    assert rate.total == 150 * 250 and rate.warmup == 5 * 250
    assert rate.peak == pytest.approx(4.5e-6 * 8 * 30) == pytest.approx(1.08e-3)
    assert rate(0) == pytest.approx(rate.peak / 1250) and rate(1249) == rate.peak == rate(rate.total - 1)


def test_options_override_the_recipe(tmp_path):
    options = TokenizerTraining(
        data=tmp_path, recipe="released", steps=7, learning_rate=0.1, warmup_steps=3, restart=False
    )
    rate = new_schedule(options.resolved(), 10, World(0, 2, None))
    assert (rate.total, rate.peak, rate.warmup, rate.decay) == (7, 0.1, 3, "cosine")
    assert options.resolved().restart is False and options.resolved().epochs is None


def test_too_short_a_run(tmp_path):
    options = TokenizerTraining(data=tmp_path, recipe="imagenet", epochs=0.01).resolved()
    with pytest.raises(ValueError, match="less than one step"):
        new_schedule(options, 10, World(0, 1, None))


def test_schedules():
    constant = LearningRate(2.0, warmup=4, total=10)
    assert [constant(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    cosine = LearningRate(2.0, warmup=2, total=10, decay="cosine")
    expected = [2.0 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 8)) for step in range(2, 10)]
    assert [cosine(step) for step in range(10)] == pytest.approx([1.0, 2.0, *expected])
    assert LearningRate(1.0, warmup=0, total=4)(0) == 1.0 and cosine(99) == 0.0


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(7, None, 7), (None, None, 0), (None, 0.5, 2), (None, 0.3, 2), (99, None, 40)]
)
def test_the_steps_of_a_warm_up(steps, epochs, expected):
    """Of 40 steps, five to an epoch."""
    given = {"warmup_steps": steps, "warmup_epochs": epochs, "steps": 40, "epochs": None, "minutes": None}
    given |= {"learning_rate": 1.0, "schedule": "constant", "batch_size": 2}
    rate = new_schedule(SimpleNamespace(**given), 5, World(0, 1, torch.device("cpu")))
    assert (rate.warmup, rate.total) == (expected, 40)
