"""Our ``VectorQuantize`` beside the real one: nearer codes, masks, heads, dtypes, vectors of any length."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.testing import exact_distances

pytest.importorskip("vector_quantize_pytorch")
DIM, SIZE = 12, 40


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("cosine", [False, True])
def test_where_codes_differ_ours_are_nearer(cosine, mean, pair):
    """How many of their codes are not the nearest: more where vectors have a common mean."""
    theirs, ours = pair(dim=64, codebook_size=512, use_cosine_sim=cosine)
    x, codes = mean + torch.randn(4096, 64), mean + torch.randn(512, 64)
    if cosine:
        codes = normalize(codes, dim=-1)
    for layer in (theirs, ours):
        layer.eval()
        layer.codebook = codes
    mine, other = ours(x[None])[1][0], theirs(x[None])[1][0]
    rows = normalize(x, dim=-1, eps=1e-6) if cosine else x
    cost = -rows.double() @ codes.double().T if cosine else exact_distances(rows, codes)
    assert torch.equal(mine, cost.argmin(1))
    wrong = mine != other
    gain = cost.gather(1, other[:, None]) - cost.gather(1, mine[:, None])
    assert bool((gain[wrong] > 0).all())
    print(f"{int(wrong.sum())} of {len(x)} of their codes are not the nearest")
    assert (int(wrong.sum()) > 0) == (mean > 0)
    assert int(wrong.sum()) < len(x) / 10


def test_cosine_takes_the_greatest_product_of_codes_of_any_length():
    ours = VectorQuantize(DIM, SIZE, use_cosine_sim=True).eval()
    ours.codebook = torch.randn(SIZE, DIM) * torch.linspace(0.1, 5, SIZE)[:, None]
    x = torch.randn(2, 50, DIM)
    products = normalize(x, dim=-1).double() @ ours.codebook.double().T
    assert torch.equal(ours(x)[1], products.argmax(-1))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("separate", [False, True])
def test_masks_serve_heads_and_projections(heads, separate):
    """There theirs fails; the result is that of the sequence without its padding."""
    ours = VectorQuantize(DIM, SIZE, codebook_dim=5, heads=heads, separate_codebook_per_head=separate)
    other = copy.deepcopy(ours)
    x = torch.randn(1, 17, DIM)
    quantized, codes, loss = ours(x, lens=torch.tensor([11]))
    expected, their_codes, their_loss = other(x[:, :11])
    torch.testing.assert_close(quantized[:, :11], expected)
    torch.testing.assert_close(loss, their_loss)
    assert torch.equal(codes[:, :11], their_codes)
    assert bool((quantized[:, 11:] == 0).all()) and bool((codes[:, 11:] == -1).all())
    torch.testing.assert_close(ours.codebook, other.codebook)


@pytest.mark.parametrize("heads, separate", [(1, False), (2, True), (2, False)])
@pytest.mark.parametrize("width", [DIM, 5])
def test_codes_decode_to_what_forward_returned(heads, separate, width):
    options = {"codebook_dim": width, "heads": heads, "separate_codebook_per_head": separate}
    for shape, layout in (
        ((2, 7, DIM), {}),
        ((2, DIM), {}),
        ((2, DIM, 7), {"channel_last": False}),
        ((2, DIM, 3, 4), {"accept_image_fmap": True}),
        ((2, DIM, 2, 3, 4), {"accept_3d_fmap": True}),
    ):
        ours = VectorQuantize(DIM, SIZE, **options, **layout).eval()
        quantized, codes, loss = ours(torch.randn(shape))
        assert loss == 0
        torch.testing.assert_close(ours.get_output_from_indices(codes), quantized)


@pytest.mark.parametrize("length", [0.0, 1e-8, 1e-5, 1e3])
def test_vectors_of_any_length_rotate_alike(length, pair):
    theirs, ours = pair()
    x = length * normalize(torch.randn(1, 50, DIM), dim=-1)
    results = []
    for layer in (theirs, ours):
        own = x.clone().requires_grad_()
        quantized, _, loss = layer(own)
        (quantized.square().sum() + loss).backward()
        results.append((quantized, own.grad))
    for mine, other in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6 + 1e-5 * float(other.detach().abs().max()))


@pytest.mark.parametrize("rotate", [True, False])
def test_big_inputs_go_in_parts_with_the_same_result(rotate, pair):
    theirs, ours = pair(dim=64, rotation_trick=rotate, accept_image_fmap=True)
    x, grad = torch.randn(3, 64, 40, 50), torch.randn(3, 64, 40, 50)
    results = []
    for layer in (theirs, ours):
        own = x.clone().requires_grad_()
        quantized, codes, loss = layer(own)
        results.append((quantized, codes, loss, torch.autograd.grad([quantized, loss], [own], [grad, None])[0]))
    for mine, other in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("convert", [True, False], ids=["module", "input"])
@pytest.mark.parametrize("cosine", [True, False])
def test_dtypes_are_theirs(dtype, convert, cosine, pair):
    theirs, ours = pair(use_cosine_sim=cosine)
    x = torch.randn(20, 500, DIM, dtype=dtype)  # so many that sums do not fit into float16
    results = []
    for layer in (theirs, ours):
        layer = layer.to(dtype) if convert else layer
        own = x.clone().requires_grad_()
        quantized, codes, loss, terms = layer(own, return_loss_breakdown=True)
        (quantized.sum() + loss).backward()
        results.append((quantized, codes, loss, terms.commitment, own.grad, *layer.state_dict().values()))
    tolerance = 3e-2 if dtype != torch.float64 else 1e-5
    for mine, other in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_autocast_leaves_the_codes_exact():
    ours = VectorQuantize(DIM, SIZE, codebook_dim=5)
    x = torch.randn(2, 300, DIM, requires_grad=True)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            quantized, codes, loss = ours(x, freeze_codebook=True)
            vectors = ours.project_in(x).float()[0]
        assert torch.equal(codes[0], exact_distances(vectors, ours.codebook).argmin(1))
        (quantized.float().sum() + loss).backward()


def test_commitment_under_autocast_is_float32(pair):
    x = torch.randn(2, 20, DIM)
    for layer, other in (pair(codebook_dim=4),):
        with torch.autocast("cpu", torch.float16):
            (_, _, mine), (_, _, theirs) = layer(x), other(x)
        assert mine.dtype == theirs.dtype == torch.float32
        (mine * 2.0**20).backward()
        assert all(p.grad.isfinite().all() for p in other.parameters() if p.grad is not None)


def test_heads_do_not_read_each_others_codes():
    layer = VectorQuantize(DIM, SIZE, heads=2, separate_codebook_per_head=True)
    for wrong in ([SIZE, 3], [2, -1]):
        with pytest.raises(IndexError):
            layer.get_codes_from_indices(torch.tensor([[wrong]]))


def test_codes_of_heads_have_their_shape(pair):
    for options in (
        {"heads": 2},
        {"heads": 2, "separate_codebook_per_head": True},
        {"heads": 2, "channel_last": False},
    ):
        theirs, ours = pair(codebook_dim=6, **options)
        indices = torch.randint(SIZE, (2, 5, 2))
        torch.testing.assert_close(ours.get_codes_from_indices(indices), theirs.get_codes_from_indices(indices))
