"""The settings of sampling: their defaults and their ranges."""

import inspect

import pytest

from dqcore.cli.sample import sample
from dqcore.models.priors.base import Prior
from dqcore.models.sampling.draw import Draw
from dqcore.models.sampling.settings import Sampling


def test_positions_take_the_temperature_of_contents():
    assert Sampling(temperature=0.5).positions == Draw(0.5, None, 1.0)
    assert Sampling(temperature=0.5, position_temperature=2.0, position_top_k=3).positions == Draw(2.0, 3, 1.0)
    assert Sampling(top_p=0.9).contents == Draw(1.0, 300, 0.9)


def test_guidance_runs_the_model_twice():
    assert (Sampling().copies, Sampling(guidance=2.0).copies) == (1, 2)


@pytest.mark.parametrize("function", [Prior.generate, sample])
def test_generate_and_the_command_line_have_the_same_defaults(function):
    parameters = inspect.signature(function).parameters
    assert Sampling() == Sampling(**{name: parameters[name].default for name in Sampling.__dataclass_fields__})


def test_generate_takes_these_arguments_by_position():
    """Code is written against this order, so what is added comes by name."""
    parameters = inspect.signature(Prior.generate).parameters.values()
    order = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert order == ["self", "batch_size", "labels", "temperature", "top_k", "top_p", "position_top_k", "seed"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("temperature", 1e-40),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("position_temperature", -1.0),
        ("position_top_k", 0),
        ("position_top_p", 2.0),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("guidance", -1e31),
        ("cache", "int4"),
    ],
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Sampling(**{name: value})


def test_guidance_goes_with_the_temperature():
    """Their quotient is what multiplies the logits: what was too large drew codes that no codebook has."""
    assert Sampling(temperature=1e-20, guidance=-1e9).copies == 2
    assert Sampling(temperature=1e-30).copies == 1
    for name in ("temperature", "position_temperature"):
        with pytest.raises(ValueError, match=r"^guidance: expected"):
            Sampling(**{name: 1e-20}, guidance=1e11)
