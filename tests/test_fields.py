"""Fields of dataclasses take what their annotations say, and name what they do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import dqcore
from dqcore.errors import InputError
from dqcore.fields import check_fields
from dqcore.training import PriorTraining, TokenizerTraining


@dataclass(frozen=True)
class Options:
    count: int = 1
    share: float | None = 0.5
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    name: str = ""
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    out: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def test_values_take_the_kind_of_their_field() -> None:
    made = Options(np.int64(3), None, sizes=[1, 2], pair=np.array([1, 2]), out="a/b")
    assert made == Options(3, None, sizes=(1, 2), pair=(1, 2), out=Path("a/b"))
    assert (type(made.count), type(made.pair[0])) == (int, int)
    assert type(Options(share=np.float32(0.25)).share) is float
    assert Options(sizes=7).sizes == (7,)
    assert Options(sizes=torch.tensor([4, 5])).sizes == (4, 5)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 2.0, "a whole number, got 2.0"),
        ("count", True, "a whole number, got True"),
        ("count", None, "a whole number, got None"),
        ("count", "2", "a whole number, got '2'"),
        ("share", "0.5", "a number, got '0.5'"),
        ("share", False, "a number, got False"),
        ("kind", "c", "a or b, got 'c'"),
        ("kind", ["a"], "a or b, got ['a']"),
        ("flag", 1, "True or False, got 1"),
        ("name", 1, "text, got 1"),
        ("sizes", (1, 2.5), "a whole number, got (1, 2.5)"),
        ("sizes", "12", "a tuple, got '12'"),
        ("pair", (1.0,), "a tuple of 2, got (1.0,)"),
        ("pair", 1.0, "a tuple of 2, got 1.0"),
        ("out", 3, "a path, got 3"),
    ],
)
def test_another_kind_is_named(name: str, value: object, expected: str) -> None:
    with pytest.raises(InputError) as error:
        Options(**{name: value})
    assert str(error.value) == f"{name}: expected {expected}"


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (dqcore.DQVAEConfig, "dim", 64.0),
        (dqcore.DQVAEConfig, "commitment", float("inf")),
        (dqcore.DQVAEConfig, "strides", "16"),
        (dqcore.VQGANConfig, "channels", "128"),
        (dqcore.DQTransformerConfig, "num_heads", 2.0),
        (dqcore.DQTransformerConfig, "order", "column-first"),
        (dqcore.DQTransformerConfig, "region_grid", 16),
        (TokenizerTraining, "batch_size", 2.5),
        (TokenizerTraining, "reconstruction", "l3"),
        (PriorTraining, "precision", "float16"),
        (PriorTraining, "epochs", "3"),
    ],
)
def test_configs_and_options_of_runs_are_checked(options: type, name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected"):
        options(**{name: value})
