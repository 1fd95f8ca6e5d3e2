"""Our ``VectorQuantize`` beside the real one: same seeds, weights and inputs, 20 training steps, then evaluation."""

import inspect

import pytest
import torch

from dqcore.compat.vector_quantize_pytorch import VectorQuantize

package = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.filterwarnings("ignore:k-means starts", "ignore:Converting a tensor")

DIM, SIZE, STEPS = 12, 40, 20
INPUTS = {  # shape and the arguments it needs
    "sequence": ((3, 17, DIM), {}),
    "vectors": ((30, DIM), {}),
    "channel_first": ((3, DIM, 17), {"channel_last": False}),
    "image": ((3, DIM, 5, 4), {"accept_image_fmap": True}),
    "volume": ((2, DIM, 2, 5, 4), {"accept_3d_fmap": True}),
}
OPTIONS = {
    "defaults": {},
    "straight": {"rotation_trick": False},
    "cosine": {"use_cosine_sim": True},
    "cosine_straight": {"use_cosine_sim": True, "rotation_trick": False},
    "projected": {"codebook_dim": 5, "layernorm_after_project_in": True},
    "cosine_heads": {"codebook_dim": 4, "heads": 3, "use_cosine_sim": True},
    "heads": {"codebook_dim": 4, "heads": 3},
    "separate_heads": {"codebook_dim": 6, "heads": 2, "separate_codebook_per_head": True, "threshold_ema_dead_code": 1},
    "kmeans": {"kmeans_init": True, "kmeans_iters": 4, "decay": 0.99, "eps": 1e-3},
    "kmeans_cosine_expiring": {"kmeans_init": True, "use_cosine_sim": True, "threshold_ema_dead_code": 2},
    "expiring": {"threshold_ema_dead_code": 2, "commitment_weight": 0.25},
    "manual_ema": {"manual_ema_update": True, "threshold_ema_dead_code": 1},
    "no_commitment": {"commitment_weight": 0.0},
    "frozen": {"freeze_codebook": True},
    "learned": {"learnable_codebook": True, "ema_update": False, "threshold_ema_dead_code": 1},
    "learned_straight": {"learnable_codebook": True, "ema_update": False, "rotation_trick": False},
    "optimistic": {"learnable_codebook": True, "ema_update": False, "sync_update_v": 0.3},
    "gumbel": {"straight_through": True, "rotation_trick": False},
    "stochastic": {"stochastic_sample_codes": True, "sample_codebook_temp": 0.5},
    "orthogonal": {"orthogonal_reg_weight": 2.0, "orthogonal_reg_max_codes": 11},
    "orthogonal_active": {"orthogonal_reg_weight": 2.0, "orthogonal_reg_active_codes_only": True},
    "diverse": {"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 3.0},
    "cross_entropy": {"commitment_use_cross_entropy_loss": True},
    "directional": {"directional_reparam": True, "threshold_ema_dead_code": 2},
    "own_optimizer": {
        "learnable_codebook": True,
        "ema_update": False,
        "in_place_codebook_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    },
    "unrouted": {"route_gradients_to_input": False, "codebook_dim": 5},
}


def close(actual, expected, tolerance=1e-5):
    """Equal within ``tolerance`` of the largest value."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if actual.dtype in (torch.int64, torch.bool):
        assert torch.equal(actual, expected)
    else:
        scale = float(expected.detach().abs().amax()) if expected.numel() else 0
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def step(layer, x, seed, **call):
    """A forward and backward pass: results, the gradients of the input and of every parameter."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    layer.zero_grad()
    quantized, codes, loss, *terms = layer(x, **call)
    total = (quantized * torch.linspace(-1, 1, quantized.numel()).view_as(quantized)).mean() + loss.sum()
    if total.requires_grad:
        total.backward()
    return [quantized, codes, loss, *(terms[0] if terms else ())], [x.grad, *(p.grad for p in layer.parameters())]


def assert_same_training(theirs, ours, shape, steps=STEPS, call=lambda: {}):
    """Train both on the same inputs and compare all there is."""
    for number in range(steps):
        torch.manual_seed(100 + number)
        x, arguments = torch.randn(shape), call()
        expected, gradients = step(theirs, x, number, **arguments)
        results, our_gradients = step(ours, x, number, **arguments)
        assert torch.equal(results[1], expected[1])
        close(results[0], expected[0])
        for ours_is, theirs_is in zip(results[2:], expected[2:], strict=True):
            close(ours_is, theirs_is, 1e-6 if number == 0 else 1e-5)
        for ours_is, theirs_is in zip(our_gradients, gradients, strict=True):
            assert (ours_is is None) == (theirs_is is None)
            if ours_is is not None:
                close(ours_is, theirs_is)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, values in theirs.state_dict().items():
        close(ours.state_dict()[name], values)


def assert_same_evaluation(theirs, ours, shape):
    """Swap the states, strictly, and compare evaluation and decoding."""
    state = {name: values.clone() for name, values in ours.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(state, strict=True)
    theirs.eval(), ours.eval()
    x = torch.randn(shape)
    for ours_is, theirs_is in zip(ours(x), theirs(x), strict=True):
        close(ours_is.detach(), theirs_is.detach())


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", ["defaults", "cosine_straight", "kmeans_cosine_expiring", "projected"])
def test_layouts_train_alike(kind, name, pair):
    shape, layout = INPUTS[kind]
    theirs, ours = pair(**OPTIONS[name], **layout)
    assert_same_training(theirs, ours, shape)
    assert_same_evaluation(theirs, ours, shape)


@pytest.mark.parametrize("kind", ["sequence", "image"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_train_alike(name, kind, pair):
    shape, layout = INPUTS[kind]
    if name == "cross_entropy" and kind == "image":
        pytest.skip("theirs fails")
    theirs, ours = pair(**OPTIONS[name], **layout)
    assert_same_training(theirs, ours, shape, call=lambda: {"return_loss_breakdown": True})
    assert_same_evaluation(theirs, ours, shape)


CALLS = {
    "mask": lambda: {"mask": torch.rand(3, 17) < 0.6, "return_loss_breakdown": True},
    "lens": lambda: {"lens": torch.tensor([3, 17, 9])},
    "top": lambda: {"topk": 3, "return_loss_breakdown": True},
    "top_mask": lambda: {"topk": 3, "mask": torch.rand(3, 17) < 0.6},
    "frozen": lambda: {"freeze_codebook": True},
    "weighted": lambda: {"ema_update_weight": torch.rand(SIZE)},
    "weighted_by": lambda: {"ema_update_weight": lambda sums, counts: counts / 10},
    "no_ema": lambda: {"ema_update": False},
    "accumulated": lambda: {"accum_ema_update": bool(torch.rand(()) < 0.7)},
    "transformed": lambda: {"codebook_transform_fn": lambda codes: codes[:, None, None] + torch.zeros(1, 3, 17, 1, 1)},
}


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True, "rotation_trick": False}], ids=["default", "cosine"])
@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "inputs"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_train_alike(name, zeros, options, pair):
    theirs, ours = pair(**options, threshold_ema_dead_code=1, return_zeros_for_masked_padding=zeros)
    assert_same_training(theirs, ours, (3, 17, DIM), call=CALLS[name])


def test_kmeans_start_sees_only_the_mask(pair):
    for options in ({}, {"use_cosine_sim": True}):
        theirs, ours = pair(kmeans_init=True, codebook_size=8, **options)
        assert_same_training(theirs, ours, (3, 17, DIM), call=CALLS["mask"])


@pytest.mark.parametrize("options", [{}, {"heads": 2, "codebook_dim": 6}, {"use_cosine_sim": True}])
def test_cross_entropy_to_given_codes(options, pair):
    theirs, ours = pair(**options)
    for layer in (theirs, ours):
        layer.eval()
    x = torch.randn(3, 17, DIM)
    indices = torch.randint(-1, SIZE, (3, 17, options["heads"]) if "heads" in options else (3, 17))
    for ours_is, theirs_is in zip(ours(x, indices=indices), theirs(x, indices=indices), strict=True):
        close(ours_is, theirs_is)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
def test_codes_are_written_and_read_alike(separate, cosine, pair):
    options = {"heads": 2, "separate_codebook_per_head": separate, "use_cosine_sim": cosine, "codebook_dim": 6}
    theirs, ours = pair(**options, threshold_ema_dead_code=3)
    new = torch.nn.functional.normalize(torch.randn(ours.codebook.shape), dim=-1)
    x, indices = torch.randn(3, 17, DIM), torch.randint(0, SIZE, (3, 17, 2))
    for layer in (theirs, ours):
        layer.codebook = new
        torch.manual_seed(1)
        layer.update_indices(x, indices)
        torch.manual_seed(2)
        layer.expire_codes_(x)
        layer._codebook.update_ema()
    close(ours.codebook, theirs.codebook)
    if separate:  # theirs does not join the heads of a shared codebook
        close(ours.get_codes_from_indices(indices), theirs.get_codes_from_indices(indices))
        close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices))


def test_signatures_are_theirs():
    for method in ("__init__", "forward", "update_indices", "get_codes_from_indices", "expire_codes_"):
        theirs = inspect.signature(getattr(package.VectorQuantize, method)).parameters
        ours = inspect.signature(getattr(VectorQuantize, method)).parameters
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_public_attributes_are_theirs(pair):
    theirs, ours = pair()
    assert [name for name in dir(theirs) if not name.startswith("_") and not hasattr(ours, name)] == []
