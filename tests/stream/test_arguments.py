"""Whatever a function of a stream is given in an argument's place, its error names the argument."""

import math

import numpy as np
import pytest
import torch

import dqcore
from dqcore.errors import DqcoreError
from dqcore.inference import evaluate_tokenizer
from dqcore.stream import (
    CodeCounts,
    CodeTables,
    code_classes,
    fit_tables,
    load_code_tables,
    read_stream,
    save_code_tables,
    write_stream,
)

TABLES = CodeTables.uniform(16, 2)
IDENTITY = "0123456789abcdef"
MAPS = {"codes": torch.zeros(4, 4, dtype=torch.long), "grain": torch.zeros(2, 2, dtype=torch.long)}
WRITTEN = {**MAPS, "size": (32, 32), "tables": TABLES, "identity": IDENTITY}
READ = {"data": write_stream(**WRITTEN), "tables": TABLES, "identity": IDENTITY}
READ |= {"preview": False, "max_pixels": 1 << 26}
ONES = {"code_counts": torch.ones(2, 16).long(), "grain_counts": torch.ones(2).long()}
NUMBERS = {"codebook_size": 16, "num_granularities": 2}

#: What is no argument of any of them, or of few.
ODD = [
    *("ab", "", b"ab", None, object(), {}, [], [1, 2], (1, 2, 3), ["a", "b"], [None, None], [[1], [2]]),
    *(True, -1, 0, 1.5, math.nan, math.inf, 10**30, np.zeros(3), np.int64(5)),
    *([math.nan, 1.0], [-1, -1], [10**30, 10**30], torch.tensor(3), torch.randn(3), torch.zeros(2, 2).long()),
    *(torch.ones(4, 4).bool(), torch.zeros(0).long(), torch.zeros(1, 2, 2).long(), torch.ones(4, 3, 1).long()),
    *(torch.empty(2, 2, device="meta"), torch.zeros(2, 2, device="meta").long(), torch.full((4, 4), -1)),
]


def _count(codes, grain):
    CodeCounts(torch.zeros(16).long(), 2).add(codes, grain)


CALLS = {
    "write": (write_stream, WRITTEN),
    "read": (read_stream, READ),
    "classes": (code_classes, {"codebook": torch.randn(16, 4), "number": 3}),
    "counts": (CodeCounts, {"classes": torch.zeros(16).long(), "num_granularities": 2}),
    "add": (_count, {name: value[None] for name, value in MAPS.items()}),
    "fit": (CodeTables.fit, ONES),
    "uniform": (CodeTables.uniform, NUMBERS),
    "tables": (CodeTables, {name: getattr(TABLES, name) for name in CodeTables.__dataclass_fields__}),
}


def _check(call, good, name):
    """Every odd value as this argument: it does, or the error names one of the arguments (two may not fit)."""
    for odd in ODD:
        try:
            call(**good | {name: odd})
        except (DqcoreError, TypeError) as error:
            assert any(other in str(error).split(": ")[0] for other in (*good, "stream")), (odd, error)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, good) in CALLS.items() for name in good])
def test_an_error_names_the_argument(kind, name):
    call, good = CALLS[kind]
    call(**good)
    _check(call, good, name)


def test_a_limit_that_is_no_number_is_none():
    """No size is larger than NaN, which so switched the limit off."""
    for wrong in (math.nan, 0, "many"):
        with pytest.raises(ValueError, match=r"max_pixels: expected at least 1, got"):
            read_stream(**READ | {"max_pixels": wrong})
    assert read_stream(**READ | {"max_pixels": math.inf}).size == (32, 32)


def test_folders_of_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tables", "folder"):
        _check(save_code_tables, {"tables": TABLES, "folder": tmp_path}, name)
    for wrong in (None, 3, torch.zeros(3)):
        with pytest.raises(TypeError, match=r"folder: expected a path, got"):
            load_code_tables(wrong, 16, 2)
    for name in NUMBERS:
        for wrong in ("ab", 1.5, torch.zeros(3), 0):
            with pytest.raises(ValueError, match=rf"{name}: expected at least 1 and whole"):
                load_code_tables(tmp_path, **NUMBERS | {name: wrong})


@pytest.mark.parametrize("use", [fit_tables, evaluate_tokenizer])
def test_tokenizers_and_their_batches(use):
    small = {"channels": 8, "latent_channels": 8, "dim": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}
    model, images = dqcore.DQVAE.from_preset("dqvae-dual-tiny", **small).eval(), torch.zeros(1, 3, 32, 32)
    for wrong in (None, "ab", torch.zeros(3), torch.nn.Identity()):
        with pytest.raises(TypeError, match=r"model: expected a tokenizer, got"):
            use(wrong, [images])
    with pytest.raises(TypeError, match=r"batches: expected tensors .*; pass \[images\]"):
        use(model, images)
    for wrong in (None, 3, [None], ["ab"], [images.numpy()]):
        with pytest.raises(TypeError, match="batches: expected tensors"):
            use(model, wrong)
