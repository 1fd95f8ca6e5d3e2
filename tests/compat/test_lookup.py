"""The lookup that the compat classes share: exact, straight through, and quick for a few vectors."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from dqcore.compat import diffusers, llamagen, taming, titok
from dqcore.compat.lookup import _nearest_of_few, lookup, nearest
from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.compat.vector_quantize_pytorch.search import most_similar
from dqcore.ops.nearest_code import nearest_code
from dqcore.ops.reference.nearest_code import nearest_code_reference
from dqcore.testing import adversarial_codebooks

NAMES = list(adversarial_codebooks(1, 2, 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("num", "size", "dim"), [(16, 64, 8), (3, 700, 33), (1, 2, 1)])
def test_a_few_vectors_get_the_float64_argmin(name, num, size, dim):
    x, codebook = adversarial_codebooks(num, size, dim)[name]
    assert torch.equal(nearest(x, codebook), nearest_code_reference(x, codebook, "exact"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_vector_that_is_not_finite_gets_what_the_op_gives(value):
    x, codebook = torch.randn(4, 8), torch.randn(16, 8)
    x[1, 2] = value
    assert torch.equal(nearest(x, codebook), nearest_code(x, codebook))


def test_the_quick_way_is_taken_and_leaves_ties_alone():
    x, codebook = torch.randn(4, 8), torch.randn(16, 8)
    assert _nearest_of_few(x, codebook) is not None
    codebook[3] = codebook[7] = x[0]
    assert _nearest_of_few(x, codebook) is None
    assert nearest(x, codebook)[0] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    quantizer = taming.VectorQuantizer2(32, 8, 0.25).to(dtype)
    z = torch.randn(2, 8, 3, 3, dtype=dtype, requires_grad=True)
    quantized, loss, (_, _, codes) = quantizer(z)
    assert quantized.dtype == loss.dtype == dtype
    rows = z.detach().permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(codes, nearest_code_reference(rows, quantizer.embedding.weight.detach(), "exact"))
    loss.backward()
    assert z.grad.dtype == quantizer.embedding.weight.grad.dtype == dtype


def test_half_features_with_a_float_codebook_as_under_autocast():
    quantizer = taming.VectorQuantizer2(32, 8, 0.25)
    z = torch.randn(2, 8, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    quantized, loss, _ = quantizer(z)
    assert quantized.dtype == loss.dtype == torch.float32
    (quantized.sum() + loss).backward()
    assert z.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
def test_gradients_are_those_of_the_formula(layout):
    codebook = torch.randn(16, 6, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    z = z.to(memory_format=torch.channels_last) if layout == "channels_last" else z
    z = z[:1].expand(2, 6, 4, 5) if layout == "expanded" else z
    z = z.detach().requires_grad_()
    found = lookup(z, codebook)
    vectors = codebook[found.codes].view(2, 4, 5, 6).permute(0, 3, 1, 2)
    expected = (
        z + (vectors - z).detach(),
        (vectors.detach() - z).square().mean(),
        (vectors - z.detach()).square().mean(),
    )
    grad = torch.randn_like(z)
    for mine, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(mine, theirs)
    outputs = [3 * found.commitment + 5 * found.codebook, found.quantized]
    wanted = [3 * expected[1] + 5 * expected[2], expected[0]]
    ours = torch.autograd.grad(outputs, [z, codebook], [None, grad], retain_graph=True)
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, [z, codebook], [None, grad]), strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, again in zip(ours, torch.autograd.grad(outputs, [z, codebook], [None, grad]), strict=True):
        assert torch.equal(mine, again)


def test_a_codebook_that_changes_before_backward_changes_no_gradient():
    codebook, z = torch.randn(16, 4), torch.randn(1, 4, 3, 3, requires_grad=True)
    found = lookup(z, codebook)
    expected = torch.autograd.grad(found.commitment, z, retain_graph=True)[0].clone()
    codebook.zero_()
    found.quantized.detach().zero_()
    assert torch.equal(torch.autograd.grad(found.commitment, z)[0], expected)


def test_an_empty_batch():
    quantizer = taming.VectorQuantizer2(16, 4, 0.25)
    quantized, _, (_, _, codes) = quantizer(torch.zeros(0, 4, 3, 3))
    assert quantized.shape == (0, 4, 3, 3) and codes.shape == (0,)


def test_codes_far_longer_than_the_others_are_left_out_of_the_search(monkeypatch):
    x, codebook = torch.randn(700, 16), torch.randn(300, 16)
    codebook[::3] *= torch.linspace(1, 1e7, 100)[:, None]
    seen = []
    monkeypatch.setattr(
        "dqcore.compat.lookup.nearest_code", lambda x, c: seen.append(len(c)) or nearest_code_reference(x, c, "exact")
    )
    assert torch.equal(nearest(x, codebook), nearest_code_reference(x, codebook, "exact"))
    assert seen == [201]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqcore.compat.lookup.LONG", 1)
        codebook[0] = torch.nan
        assert torch.equal(nearest(x, codebook), nearest_code_reference(x, codebook, "exact"))


def test_vectors_that_are_not_finite_get_code_0_in_the_classes():
    """As ``argmin`` over distances that are NaN gives it; also where far codes are left out of the search."""
    x, codebook = torch.randn(512, 8), torch.randn(600, 8)
    x[3, 2], x[7] = torch.nan, torch.inf
    finite = torch.ones(512, dtype=torch.bool).index_fill(0, torch.tensor([3, 7]), False)
    for length in (1.0, 1e6):
        codebook[5] *= length
        codes = lookup(x, codebook).codes
        assert codes[3] == codes[7] == 0
        assert torch.equal(codes[finite], nearest_code(x[finite], codebook))
        assert torch.equal(most_similar(x[None], codebook[None], False)[0], codes)


def test_the_loss_of_a_large_map_is_accurate():
    z, codebook = torch.randn(8, 256, 32, 32), torch.randn(64, 256)
    found = lookup(z, codebook)
    error = (codebook[found.codes].double() - z.permute(0, 2, 3, 1).flatten(0, 2)).square().mean()
    assert abs(float(found.commitment) / float(error) - 1) < 1e-6


@pytest.mark.parametrize("dim", [4, 64])
def test_codes_are_exact_under_autocast(dim):
    torch.manual_seed(0)
    quantizer = taming.VectorQuantizer2(256, dim, 0.25)
    quantizer.embedding.weight.data.normal_()
    for _ in range(20):
        z = torch.randn(1, dim, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            codes = quantizer(z)[2][2]
        rows = z.permute(0, 2, 3, 1).flatten(0, 2)
        assert torch.equal(codes, nearest_code_reference(rows, quantizer.embedding.weight.detach(), "exact"))


MADE = {
    "vector-quantize-pytorch": lambda: VectorQuantize(dim=8, codebook_size=32, accept_image_fmap=True),
    "taming": lambda: taming.VectorQuantizer(32, 8, 0.25),
    "taming 2": lambda: taming.VectorQuantizer2(32, 8, beta=0.25),
    "taming EMA": lambda: taming.EMAVectorQuantizer(32, 8, beta=0.25),
    "diffusers": lambda: diffusers.VectorQuantizer(32, 8, beta=0.25),
    "LlamaGen": lambda: llamagen.VectorQuantizer(32, 8, 0.25, 0.0, True, False),
    "TiTok": lambda: titok.VectorQuantizer(32, 8),
}


@pytest.mark.parametrize("library", MADE)
def test_the_next_layer_may_work_in_place(library):
    """As after the originals, whose map is a sum of two tensors that no backward pass reads."""
    x, grads = torch.randn(2, 8, 4, 4), []
    for in_place in (False, True):
        torch.manual_seed(0)
        z = x.clone().requires_grad_()
        quantized, *rest = MADE[library]()(z * 1)
        losses = [part for part in tree_leaves(rest) if isinstance(part, torch.Tensor) and part.requires_grad]
        loss = torch.nn.functional.relu(quantized, in_place).square().sum() + sum(part.sum() for part in losses)
        grads += torch.autograd.grad(loss, z)
    assert losses and torch.equal(*grads)
