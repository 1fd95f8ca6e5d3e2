"""Vectors with a NaN or an infinity, and batches without a vector."""

import copy

import pytest
import torch
from quantizer_inputs import WAYS, buffers, unchanged

import dqcore
from dqcore import DynamicQuantizer, backends
from dqcore.codebook import Gradient, KMeans, RandomRestart
from dqcore.errors import InputError
from dqcore.nn import vectors

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("name", WAYS)
def test_vectors_that_are_not_finite_count_nowhere(name):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(8, 20, nonfinite="mask", **WAYS[name])
    quantizer(torch.randn(2, 8, 5, 4))
    other = copy.deepcopy(quantizer)
    x, mask = torch.randn(2, 8, 5, 4), torch.ones(2, 5, 4, dtype=torch.bool)
    for n, value in enumerate(BAD):
        x[n % 2, 3 * (n % 2), n, n] = value
        mask[n % 2, n, n] = False
    x.requires_grad_()
    torch.manual_seed(1)
    out = quantizer(x)
    clean = x.detach().masked_fill(~mask[:, None], 7.0).requires_grad_()
    torch.manual_seed(1)
    expected = other(clean, mask=mask)
    assert torch.equal(out.codes, expected.codes) and (out.codes[~mask] == -1).all()
    assert torch.equal(out.map, expected.map) and not out.map.permute(0, 2, 3, 1)[~mask].any()
    torch.testing.assert_close(out.loss, expected.loss)
    (out.map.square().sum() + out.loss).backward()
    (expected.map.square().sum() + expected.loss).backward()
    torch.testing.assert_close(x.grad, clean.grad)
    assert not x.grad.permute(0, 2, 3, 1)[~mask].any()
    for (key, one), two in zip(quantizer.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=key)
    for one, two in zip(quantizer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("masked", [False, True])
def test_a_lookup_leaves_out_projected_vectors_that_are_not_finite(monkeypatch, masked):
    """On a GPU nothing is asked for; here the interpreter stands for one. 1e38 is finite, but not once projected."""
    torch.manual_seed(0)
    expected, bad = DynamicQuantizer(8, 20, 2, codebook_dim=4, nonfinite="mask"), [*BAD, 1e38]
    torch.nn.init.constant_(expected.project_in.weight, 2.0)
    expected(torch.randn(1, 8, 4, 4), torch.ones(1, 2, 2).long())
    found = copy.deepcopy(expected)
    maps, grain = [torch.randn(2, 8, 2 << g, 2 << g) for g in range(2)], torch.randint(0, 2, (2, 2, 2))
    for n, value in enumerate(bad):
        maps[n % 2][n // 2, :, n % 2, 1] = value
    mask = grain.new_tensor([[[1, 0], [1, 1]], [[1, 1], [1, 0]]]).bool() if masked else None
    sides = []
    for quantizer, backend in ((expected, "auto"), (found, "interpreter")):
        own = [values.clone().requires_grad_() for values in maps]
        with dqcore.backend(backend):
            if quantizer is found:
                monkeypatch.setattr(vectors, "not_finite", None)  # nobody looks at the values
            out = quantizer(own, grain, mask)
        (out.map.square().sum() + out.loss).backward()
        sides.append([*out, *(values.grad for values in own), *(p.grad for p in quantizer.parameters())])
    for one, two in zip(*sides, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert (sides[0][1] == -1).any() and all(value.isfinite().all() for value in sides[1])
    for (key, one), two in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=key)


def test_granularities_with_vectors_that_are_not_finite():
    maps, grain = [torch.randn(1, 4, 2 << g, 2 << g) for g in range(2)], torch.tensor([[[0, 1], [1, 0]]])
    maps[0][0, 0, 0, 0] = maps[1][0, 1, 0, 3] = float("nan")
    maps[0][0, 0, 0, 1] = float("nan")  # not selected
    quantizer = DynamicQuantizer(4, 9, 2, nonfinite="mask")
    codes = quantizer(maps, grain).codes[0]
    assert (codes < 0).nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [1, 0], [1, 1]]
    with pytest.raises(InputError, match=r"2 of 10 vectors are not finite, the first in image 0 at row 0, column 0"):
        DynamicQuantizer(4, 9, 2)(maps, grain)


def test_the_default_on_a_cpu_is_the_error():
    quantizer = DynamicQuantizer(4, 9, restart=RandomRestart(0.9))
    x = torch.randn(2, 4, 3, 3)
    x[1, 2, 1, 2] = float("inf")
    before = buffers(quantizer)
    with pytest.raises(InputError, match="1 of 18 vectors are not finite, the first in image 1 at row 1, column 2"):
        quantizer(x)
    assert unchanged(quantizer, before)
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[1, 1, 2] = False
    assert quantizer(x, mask=mask).loss.isfinite()
    assert quantizer(torch.full((1, 4, 3, 3), 3e38)).codes.min() >= 0
    projected = DynamicQuantizer(4, 9, codebook_dim=2)
    torch.nn.init.constant_(projected.project_in.weight, 2.0)
    with pytest.raises(InputError, match="9 of 9 vectors are not finite"):  # these are, but not once projected
        projected(torch.full((1, 4, 3, 3), 1e38))
    with pytest.raises(InputError, match="nonfinite"):
        DynamicQuantizer(4, 9, nonfinite="ignore")


@pytest.mark.parametrize("options", [{}, {"learning": Gradient()}, {"restart": RandomRestart(0.5)},
                                     {"initialisation": KMeans()}], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["empty", "no width", "masked", "not finite"])
def test_a_batch_without_vectors_teaches_nothing(kind, options):
    quantizer = DynamicQuantizer(4, 9, nonfinite="mask", **options)
    if "initialisation" not in options:
        quantizer(torch.randn(1, 4, 3, 3))
    before = buffers(quantizer)
    x = {"empty": torch.randn(0, 4, 3, 3), "no width": torch.randn(2, 4, 3, 0)}.get(kind, torch.randn(2, 4, 3, 3))
    x = torch.full_like(x, float("nan")) if kind == "not finite" else x
    out = quantizer(x, mask=torch.zeros(2, 3, 3, dtype=torch.bool) if kind == "masked" else None)
    assert out.map.shape == x.shape and out.loss == 0 and (out.codes == -1).all() and not out.map.any()
    assert unchanged(quantizer, before)


def test_the_first_batch_of_kmeans_masks_what_is_not_finite():
    quantizer, x = DynamicQuantizer(4, 8, initialisation=KMeans(), nonfinite="mask"), torch.randn(2, 4, 5, 5)
    x[0, 1, 2, 3] = torch.nan
    out = quantizer(x)
    assert out.codes[0, 2, 3] == -1 and not out.map[0, :, 2, 3].any() and out.map.isfinite().all()


def test_a_projection_of_nothing():
    quantizer = DynamicQuantizer(4, 8, codebook_dim=3)
    out = quantizer(torch.randn(2, 4, 0))
    assert out.map.shape == quantizer.embed(out.codes).shape == (2, 4, 0)
