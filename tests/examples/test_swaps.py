"""The examples run, and models written for other quantizers train with ours."""

import importlib.util
from pathlib import Path

import pytest
import torch

import dqcore

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_taming_convention():
    taming = load("swap_taming")
    losses = taming.main(30)
    assert losses[-1] < 0.6 * losses[0]
    model = taming.SmallVQModel(taming.TamingQuantizer(16, 64)).eval()
    quant, loss, (perplexity, _, indices) = model.encode(torch.rand(2, 3, 32, 32))
    assert loss.dim() == 0
    assert 1 <= float(perplexity) <= 64
    torch.testing.assert_close(model.quantize.get_codebook_entry(indices, (2, 8, 8, 16)), quant)


def test_vector_quantize_pytorch_convention():
    example = load("swap_vector_quantize_pytorch")
    losses = example.train(dqcore.DynamicQuantizer(32, 64, commitment=0.25), 30)
    assert losses[-1] < 0.6 * losses[0]


def test_it_really_stands_in_for_that_package():
    package = pytest.importorskip("vector_quantize_pytorch")
    theirs = package.VectorQuantize(dim=32, codebook_size=64, accept_image_fmap=True, commitment_weight=0.25)
    ours = dqcore.DynamicQuantizer(32, 64, commitment=0.25)
    z = torch.randn(2, 32, 8, 8)
    for theirs_out, ours_out in zip(theirs(z), ours(z), strict=True):
        assert theirs_out.squeeze().shape == ours_out.shape
        assert theirs_out.dtype == ours_out.dtype
    sequence = dqcore.DynamicQuantizer(32, 64, channel_last=True)(z.flatten(2).mT)
    expected = package.VectorQuantize(dim=32, codebook_size=64)(z.flatten(2).mT)
    assert [t.shape for t in sequence[:2]] == [t.shape for t in expected[:2]]
