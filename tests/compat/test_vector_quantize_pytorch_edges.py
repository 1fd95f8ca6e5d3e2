"""Where our ``VectorQuantize`` is better than the real one, what it refuses, and inputs that loops really have."""

import copy
import pickle

import pytest
import torch
from processes import launch
from torch.nn.functional import normalize

from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.errors import InputError
from dqcore.testing import exact_distances

package = pytest.importorskip("vector_quantize_pytorch")
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


def test_targets_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"indices: expected shape \(2, 5\), got \(5, 2\)"):
        VectorQuantize(DIM, SIZE)(torch.randn(2, 5, DIM), indices=torch.zeros(5, 2, dtype=torch.int64))


def test_rotation_of_one_channel_is_exact():
    layer = VectorQuantize(1, SIZE, rotation_trick=True)
    x = torch.tensor([[[-3.0], [2.7], [-0.41], [0.3]]], requires_grad=True)
    layer.codebook = -1.7 * x.detach()[0].repeat(SIZE // 4 + 1, 1)[:SIZE]
    quantized = layer(x)[0]
    (grad,) = torch.autograd.grad(quantized.sum(), x)
    ratio = quantized.detach() / x.detach()  # a turn by half or by nothing, and a scale
    torch.testing.assert_close(grad, ratio, rtol=1e-5, atol=0)


def test_soft_choices_move_the_codebook_as_theirs(pair):
    x, weight, grads = torch.randn(2, 9, DIM), torch.randn(2, 9, DIM), []
    for layer in pair(orthogonal_reg_weight=0.5, straight_through=True, rotation_trick=False):
        (layer(x)[0] * weight).sum().backward()
        grads.append(layer._codebook.embed.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_loss_has_a_gradient_in_every_training_step():
    for options in ({}, {"commitment_weight": 0.0}, {"freeze_codebook": True}):
        _, _, loss = VectorQuantize(DIM, SIZE, **options)(torch.randn(2, 5, DIM))
        loss.backward()
    ours = VectorQuantize(DIM, SIZE).eval()
    assert not ours(torch.randn(2, 5, DIM, requires_grad=True))[2].requires_grad


@pytest.mark.parametrize("rotate", [True, False])
def test_second_derivatives_are_theirs(rotate, pair):
    grads = []
    for layer in pair(rotation_trick=rotate):
        torch.manual_seed(1)
        x = torch.randn(2, 5, DIM, requires_grad=True)
        quantized, _, loss = layer(x)
        (first,) = torch.autograd.grad(quantized.square().sum() + 3 * loss, x, create_graph=True)
        grads.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_results_may_be_changed_in_place():
    for options in ({}, {"rotation_trick": False}, {"use_cosine_sim": True}):
        ours = VectorQuantize(DIM, SIZE, **options)
        x = torch.randn(2, 5, DIM, requires_grad=True)
        quantized, codes, loss = ours(x)
        quantized.mul_(2)
        codes.add_(1)
        (quantized.sum() + loss).backward()


def test_copies_and_pickles():
    ours = VectorQuantize(DIM, SIZE, kmeans_init=True, codebook_dim=5)
    ours(torch.randn(2, 50, DIM))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        other.eval()
        x = torch.randn(2, 7, DIM)
        assert torch.equal(other(x)[0], ours.eval()(x)[0])


def test_kmeans_says_when_there_are_too_few_vectors():
    with pytest.warns(UserWarning, match="k-means starts 40 codes from 5 vectors"):
        VectorQuantize(DIM, SIZE, kmeans_init=True)(torch.randn(1, 5, DIM))


@pytest.mark.parametrize(
    "name, options",
    [
        ("affine_param", {"affine_param": True}),
        ("affine_param_batch_decay", {"affine_param_batch_decay": 0.5}),
        ("sync_affine_param", {"sync_affine_param": True}),
        ("rotation_trick", {"straight_through": True}),
        ("ema_update", {"learnable_codebook": True, "ema_update": True}),
        ("use_cosine_sim", {"learnable_codebook": True, "use_cosine_sim": True, "ema_update": False}),
        ("directional_reparam", {"directional_reparam": True}),
        ("vq_bridge", {"vq_bridge": torch.nn.Identity(), "learnable_codebook": False, "ema_update": False}),
        ("accept_image_fmap", {"accept_image_fmap": True, "accept_3d_fmap": True}),
        (
            "orthogonal_reg_active_codes_only",
            {
                "orthogonal_reg_active_codes_only": True,
                "orthogonal_reg_weight": 1.0,
                "heads": 2,
                "separate_codebook_per_head": True,
            },
        ),
        ("kmeans_iters", {"kmeans_init": True, "kmeans_iters": 0}),
        ("codebook_size", {"codebook_size": 0}),
    ],
)
def test_what_is_not_supported_is_refused(name, options):
    with pytest.raises(InputError, match=f"^{name}: "):
        VectorQuantize(**{"dim": DIM, "codebook_size": SIZE, **options})


@pytest.mark.parametrize(
    "name, options, shape, call",
    [
        ("x", {"accept_image_fmap": True}, (2, 5, DIM), {}),
        ("x", {"channel_last": False}, (2, DIM, 5, 5), {}),
        ("mask", {"accept_image_fmap": True}, (2, DIM, 5, 5), {"mask": torch.ones(2, 25, dtype=torch.bool)}),
        ("lens", {}, (2, DIM), {"lens": torch.tensor([1, 1])}),
        ("lens", {}, (1, 5, DIM), {"lens": torch.tensor([1]), "mask": torch.ones(1, 5, dtype=torch.bool)}),
        ("mask", {}, (2, 5, DIM), {"mask": torch.ones(2, 5)}),
        ("mask", {}, (2, 5, DIM), {"mask": torch.ones(2, 4, dtype=torch.bool)}),
        ("topk", {"heads": 2}, (1, 5, DIM), {"topk": 2}),
        ("ema_update_weight", {}, (1, 5, DIM), {"ema_update_weight": torch.ones(3)}),
    ],
)
def test_calls_that_make_no_sense_are_refused(name, options, shape, call):
    with pytest.raises(InputError, match=f"^{name}: "):
        VectorQuantize(DIM, SIZE, **options)(torch.randn(shape), **call)


TRAINING = """
import torch
import torch.distributed as dist
from vector_quantize_pytorch import VectorQuantize as Theirs
from dqcore.compat.vector_quantize_pytorch import VectorQuantize

dist.init_process_group("gloo")
rank, dim, size = dist.get_rank(), 12, 40
for options in ({"kmeans_init": True, "threshold_ema_dead_code": 2}, {"use_cosine_sim": True}):
    states = []
    for kind in (Theirs, VectorQuantize):
        torch.manual_seed(0)
        layer = kind(dim, size, sync_codebook=True, **options)
        for number in range(5):
            torch.manual_seed(10 * number + rank)
            layer(torch.randn(3 + rank, 17, dim))
        states.append(layer.state_dict())
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-5, atol=1e-5)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_one_codebook_as_theirs():
    results = launch(TRAINING, size=2)
    assert [code for code, _, _ in results] == [0, 0], [err for _, _, err in results]
