"""What models say of themselves: a line, a table, PyTorch's tree of modules."""

import pytest
import torch

import dqcore
from dqcore.models.summary import preset_of


@pytest.fixture(scope="module")
def model():
    return dqcore.DQVAE.from_preset("dqvae-dual-tiny")


def test_a_line_says_preset_size_and_facts(model):
    assert repr(model) == (
        "DQVAE(dqvae-dual-tiny, 1.45 M parameters, strides 16 and 8, 256 codes of 64 channels, feature router)"
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_452_629


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dq", "20 codes in 3 x 4 regions, 2 granularities, 5 layers of 32 channels, 7 classes)"),
        ("raster", "20 codes in 3 x 4 regions, 5 layers of 32 channels, 7 classes)"),
        ("global-local", "20 codes in 3 x 4 regions, 2 granularities, 5 layers of 32 channels, 7 classes)"),
    ],
)
def test_priors_too(new, kind, said):
    line = repr(new(kind, granularities=1 if kind == "raster" else 2, num_classes=7))
    assert line.endswith(said) and "thousand parameters" in line


def test_which_tokenizer_a_prior_belongs_to_is_no_other_preset():
    prior = dqcore.DQTransformer.from_preset("dqtransformer-tiny", tokenizer="0" * 64)
    assert preset_of(prior) == "dqtransformer-tiny"
    assert preset_of(dqcore.DQTransformer.from_preset("dqtransformer-tiny", dim=32)) is None


def test_print_shows_the_modules_and_other_peoples_trees_stay_whole(model):
    text = str(model)
    assert text.startswith("DQVAE(\n  strides 16 and 8") and "(conv_in): Conv2d(3, 16" in text
    nested = repr(torch.nn.Sequential(model, torch.nn.Identity()))
    assert nested == f"Sequential(\n  (0): {model!r}\n  (1): Identity()\n)"


def test_the_table_has_every_part(model):
    rows = dict(line.split(None, 1) for line in model.summary().splitlines()[1:])
    assert rows["strides"] == "16 and 8"
    assert rows["preset"] == "dqvae-dual-tiny" and rows["parameters"].startswith("1,452,629, and a codebook of")
    parts = sum(int(rows[name].replace(",", "")) for name, _ in model.named_children() if name in rows)
    assert parts == 1_452_629 + model.quantizer.codebook.weight.numel()


def test_a_notebook_gets_parts_and_tree(model):
    shown = model._repr_html_()
    assert shown.count("<rect") == 6 and "<details>" in shown and "conv_in" in shown
