"""What users give to priors, of every type that says the same, and of those that say nothing."""

import numpy as np
import pytest
import torch

from dqcore.models.sampling.draw import Draw


@pytest.fixture(params=["dq", "global-local"])
def prior(request, new):
    torch.manual_seed(0)
    return new(request.param, region_grid=(1, 2), num_classes=3).eval()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "uint64"])
def test_labels_of_every_kind_of_integers(prior, dtype):
    labels = torch.tensor([0, 2])
    wanted = prior.generate(2, labels)
    found = prior.generate(2, labels.to(getattr(torch, dtype)))
    assert torch.equal(found.codes, wanted.codes)
    assert torch.equal(prior(wanted, labels.to(getattr(torch, dtype))).loss, prior(wanted, labels).loss)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("labels", 2**70, ValueError, r"labels: expected values in \[-1, 3\), got 11805"),
        ("labels", -(2**70), ValueError, r"labels: expected values in \[-1, 3\), got -11805"),
        ("labels", torch.tensor([0, 3], dtype=torch.uint16), ValueError, r"labels: .* got \[0, 3\]"),
        ("labels", np.array([0, 1]), TypeError, "labels: expected an integer tensor, got ndarray"),
        ("batch_size", True, ValueError, "batch_size: expected at least 1 and whole, got True"),
        ("slots", True, ValueError, "slots: expected at least 1 and whole, got True"),
        ("given", "codes", TypeError, "given: expected a CodeSequence, got str"),
    ],
)
def test_the_argument_that_is_wrong_is_named(prior, name, value, error, message):
    with pytest.raises(error, match=f"^{message}"):
        prior.generate(**({"batch_size": 2, "labels": 0} | {name: value}))


def test_given_codes_that_the_model_lacks_are_named(prior, new):
    other = new("dq", region_grid=(1, 2), codebook_size=10**6, dim=2).eval().generate(2)
    with pytest.raises(ValueError, match=r"^given: expected codes in \[0, 20\)"):
        prior.generate(2, 0, given=other)


def test_a_label_of_a_model_without_classes(new):
    for label in (0, 2**70):
        with pytest.raises(ValueError, match=r"^labels: expected None, the model has no classes"):
            new().generate(1, label)


def test_more_than_there_are_is_all(new, spread):
    """Whatever integer it is: the ops take those of 64 bits."""
    prior = spread(new()).eval()
    wanted = prior.generate(3, top_k=None)
    assert torch.equal(prior.generate(3, top_k=2**70, position_top_k=10**30).codes, wanted.codes)
    logits, numbers = torch.randn(4, 9), torch.tensor([1, 10**5, 10**6, 8 * 10**6])
    assert torch.equal(Draw(top_k=2**70)(logits, numbers), Draw()(logits, numbers))
