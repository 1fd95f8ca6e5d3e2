"""What ``replace_quantizers`` does with layers of vector-quantize-pytorch: parts that are shared, changed or added."""

import copy

import pytest
import torch
from torch import nn

import dqcore
from dqcore.errors import InputError

theirs = pytest.importorskip("vector_quantize_pytorch")


class TanhLinear(nn.Linear):
    """A projection of a class of its own."""


def changed(change, *arguments, **options):
    """A model with a quantizer that somebody changed."""
    quantizer = theirs.VectorQuantize(*arguments, **options)
    change(quantizer)
    return nn.ModuleDict({"q": quantizer})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda q: setattr(q, "project_in", TanhLinear(8, 4)), "project_in: expected"),
        (lambda q: setattr(q, "project_out", nn.Tanh()), "project_out: expected"),
        (lambda q: setattr(q, "my_option", 3), "my_option: an option that dqcore does not know, here 3"),
        (lambda q: setattr(q, "get_codes_from_indices", print), "get_codes_from_indices: an option"),
        (lambda q: setattr(q._codebook, "mine", 1), "_codebook.mine: an option"),
        (lambda q: setattr(q._codebook, "reset_cluster_size", 7), "_codebook.reset_cluster_size: expected 0"),
        (lambda q: q.register_buffer("extra", torch.ones(2), persistent=False), "extra: a buffer"),
    ],
)
def test_what_would_be_lost_is_refused(change, named):
    model = changed(change, 8, 16, codebook_dim=4)
    before = model["q"]
    with pytest.raises(InputError, match=named):
        dqcore.replace_quantizers(model)
    assert model["q"] is before


def test_a_shared_codebook_stays_one():
    torch.manual_seed(0)
    model = theirs.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16, shared_codebook=True)
    model.shown = model.layers[0]._codebook
    other = copy.deepcopy(model)
    assert len(dqcore.replace_quantizers(model)) == 3
    books = {id(layer._codebook) for layer in model.layers} | {id(model.shown)}
    assert len(books) == 1
    model.double().float()
    for _ in range(5):
        x = torch.randn(2, 30, 8)
        for (mine, *_), (expected, *_) in [(model(x), other(x))]:
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.shown.embed, other.shown.embed)


def test_a_container_that_looks_for_the_class_is_refused():
    model = theirs.Sequential(nn.Linear(8, 8), theirs.VectorQuantize(8, 16))
    with pytest.raises(InputError, match="looks for its class"):
        dqcore.replace_quantizers(model)
    with pytest.raises(InputError, match="model: expected a module, got list"):
        dqcore.replace_quantizers([model])


@pytest.mark.parametrize("weight", ["commitment_weight", "orthogonal_reg_weight", "codebook_diversity_loss_weight"])
def test_a_weight_of_nothing_for_a_while(weight):
    model = changed(lambda q: setattr(q, weight, 0.0), 8, 16, **{weight: 1.0})
    other = copy.deepcopy(model)
    dqcore.replace_quantizers(model)
    assert {*dict(model.named_parameters())} == {*dict(other.named_parameters())}
    x = torch.randn(2, 5, 8)
    for one in (model, other):
        setattr(one["q"], weight, 0.25)
    torch.testing.assert_close(model["q"](x)[2], other["q"](x)[2])


def test_dtypes_of_half_models():
    model = nn.ModuleDict({"q": theirs.VectorQuantize(8, 16, codebook_dim=4)}).bfloat16()
    dqcore.replace_quantizers(model)
    for training in (True, False):
        assert model.train(training)["q"](torch.randn(2, 5, 8).bfloat16())[2].dtype == torch.bfloat16


def test_a_quantizer_without_values():
    with torch.device("meta"):
        model = nn.ModuleDict({"q": theirs.VectorQuantize(8, 16)})
    assert dqcore.replace_quantizers(model)["q"]._codebook.embed.is_meta
