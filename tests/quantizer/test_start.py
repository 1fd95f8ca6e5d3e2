"""How a codebook gets its codes: from k-means, from a setter, from a saved state, from another layer."""

import copy
import warnings

import pytest
import torch
from torch import nn

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans
from dqcore.errors import InputError


def test_kmeans_before_training_is_an_error():
    quantizer, x = DynamicQuantizer(4, 9, initialisation=KMeans()), torch.randn(2, 4, 5, 5)
    frozen = copy.deepcopy(quantizer).train()
    for call in (
        quantizer.eval(),
        lambda x: quantizer.embed(x[:, 0].long().clamp(0)),
        lambda x: frozen(x, learn=False),
    ):
        with pytest.raises(
            InputError, match=r"codebook: it starts from the first training batch.*num_sanity_val_steps=0"
        ):
            call(x)
    quantizer.train()(x)
    trained = DynamicQuantizer(4, 9, initialisation=KMeans()).eval()
    trained.load_state_dict(quantizer.state_dict())
    assert trained(x).loss < 1


@pytest.mark.parametrize("x", [torch.randn(1, 3, 2, 2), torch.ones(2, 3, 4, 4), torch.zeros(1, 3, 1, 1),
                               1e4 + torch.randn(1, 3, 2, 2) * 1e-3, torch.randn(1, 1, 1, 3) * 1e4])  # fmt: skip
def test_fewer_vectors_than_codes_give_no_duplicates(x):
    quantizer = DynamicQuantizer(x.shape[1], 50, initialisation=KMeans())
    with pytest.warns(UserWarning, match="distinct vectors for 50 codes"):
        codes = quantizer(x, learn=True).codes
    assert codes.min() >= 0
    assert len(quantizer.codes.unique(dim=0)) >= 50 - 1  # the update moves used codes by rounding
    assert (quantizer.embed(codes) - x).abs().max() <= 1e-4 * x.abs().max() + 1e-3


def test_kmeans_draws_each_vector_once():
    quantizer = DynamicQuantizer(3, 16, initialisation=KMeans(0)).freeze()
    x = torch.randn(1, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = quantizer(x)
    assert len(out.codes.unique()) == 16
    assert torch.equal(out.map, x)


def test_codes_can_be_set():
    for learning in (EMA(), Gradient()):
        quantizer = DynamicQuantizer(4, 9, initialisation=KMeans(), learning=learning)
        codes = torch.randn(9, 4)
        quantizer.codes = nn.Parameter(codes)
        assert torch.equal(quantizer.codes, codes) and bool(quantizer.initialised)
        assert {*dict(quantizer.named_parameters())} <= {"codebook.weight"}
        out = quantizer(torch.randn(2, 4, 3, 3), learn=False)
        assert torch.equal(quantizer.codes, codes)
        assert torch.equal(quantizer.embed(out.codes), out.map)
        for wrong in (codes[:8], codes.T, [1.0], codes * float("nan")):
            with pytest.raises(InputError, match="codes: expected"):
                quantizer.codes = wrong


def test_states_of_before_whose_start_was_bool_load():
    quantizer, other = DynamicQuantizer(4, 8), DynamicQuantizer(4, 8)
    quantizer(torch.randn(2, 4, 4, 4))
    state = quantizer.state_dict()
    state["initialised"] = state["initialised"].bool()
    for assign in (False, True):
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other(torch.randn(2, 4, 4, 4)).codes >= 0, torch.ones(2, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=str)
def test_a_shared_codebook_starts_once(learning):
    """The second quantizer's first batch had started it anew; so had the first one after codes that were written."""
    options = {"initialisation": KMeans(), "learning": learning, "restart": None}
    one, other = (DynamicQuantizer(4, 8, **options) for _ in range(2))
    other.codebook = one.codebook
    one(torch.randn(2, 4, 8, 8))
    assert other.eval()(torch.randn(2, 4, 4, 4)).map.isfinite().all()
    other.train()(torch.randn(2, 4, 8, 8) + 100)
    assert one.codes.mean() < 50 and other.initialised == 1

    written = DynamicQuantizer(4, 8, **options)
    codes = torch.randn(8, 4)
    with torch.no_grad():
        written.codebook.weight[:8] = codes
    assert written(torch.randn(2, 4, 4, 4), learn=False).map.isfinite().all()
    torch.testing.assert_close(written.codes.detach(), codes)
