"""A bad input or constructor argument is one error that names it, in every class of ``compat``."""

import inspect

import numpy as np
import pytest
import torch

from dqcore.compat import diffusers, llamagen, taming, titok
from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.errors import InputError

DIM, SIZE = 12, 40
MAPS = {
    "taming": lambda: taming.VectorQuantizer(SIZE, DIM, 0.25),
    "taming2": lambda: taming.VectorQuantizer2(SIZE, DIM, 0.25),
    "taming-ema": lambda: taming.EMAVectorQuantizer(SIZE, DIM, 0.25),
    "llamagen": lambda: llamagen.VectorQuantizer(SIZE, DIM, 0.25, 0.1, True, True),
    "titok": lambda: titok.VectorQuantizer(SIZE, DIM),
    "diffusers": lambda: diffusers.VectorQuantizer(SIZE, DIM, 0.25),
    "image": lambda: VectorQuantize(DIM, SIZE, accept_image_fmap=True),
}
SEQUENCES = {
    "plain": {},
    "kmeans": {"kmeans_init": True},
    "cosine": {"use_cosine_sim": True},
    "projected": {"codebook_dim": 4},
    "heads": {"heads": 3, "codebook_dim": 4},
    "learned": {"learnable_codebook": True, "ema_update": False},
}
QUANTIZERS = MAPS | {name: lambda given=given: VectorQuantize(DIM, SIZE, **given) for name, given in SEQUENCES.items()}


def _input(name, dim=DIM):
    return torch.randn(2, dim, 4, 4) if name in MAPS else torch.randn(2, 25, dim)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_is_no_map_of_floats_of_this_width_is_refused(name):
    layer, good = QUANTIZERS[name](), _input(name)
    given = {"wide": _input(name, DIM + 1), "narrow": _input(name, DIM - 1), "array": np.asarray(good), "none": None}
    if name != "titok":  # the original computes in float32, whatever it gets
        given |= {"int": good.long(), "byte": good.byte(), "bool": good > 0, "complex": good.to(torch.complex64)}
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for bad in given.values():
        with pytest.raises(InputError, match=r"^[xz]: expected "):
            layer(bad)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    layer(good)


def test_titok_takes_whole_numbers_as_the_original_does():
    layer, pixels = MAPS["titok"](), torch.randint(0, 9, (1, DIM, 4, 4))
    assert torch.equal(layer.eval()(pixels)[0], layer(pixels.float())[0])


@pytest.mark.parametrize(
    ("layout", "shape"),
    [({"channel_last": False}, (2, 9, DIM)), ({"accept_3d_fmap": True}, (2, 3, 4, 5, DIM)), ({}, (2, DIM + 1))],
)
def test_channels_are_looked_for_in_their_dimension(layout, shape):
    with pytest.raises(InputError, match=r"^x: expected 12 channels in dimension 1"):
        VectorQuantize(DIM, SIZE, **layout)(torch.randn(shape))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("batch", "call", "name"),
    [
        (1, {"mask": torch.ones(2, 9, dtype=torch.bool)}, "mask"),
        (2, {"mask": torch.ones(1, 9, dtype=torch.bool)}, "mask"),
        (2, {"mask": [[True] * 9] * 2}, "mask"),
        (1, {"lens": torch.tensor([3, 4])}, "lens"),
        (2, {"lens": [3, 4]}, "lens"),
        (2, {"topk": 1.5}, "topk"),
    ],
)
def test_a_mask_has_a_row_for_each_sequence(training, batch, call, name):
    with pytest.raises(InputError, match=f"^{name}: expected "):
        VectorQuantize(DIM, SIZE).train(training)(torch.randn(batch, 9, DIM), **call)


def test_what_moves_the_codebook_by_hand_checks_too():
    layer = VectorQuantize(DIM, SIZE, threshold_ema_dead_code=2)
    x, codes = torch.randn(1, 9, DIM), torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(InputError, match=r"^x: expected 12 channels"):
        layer.update_indices(torch.randn(1, 9, DIM + 1), codes)
    with pytest.raises(InputError, match=r"^indices: expected a code for each vector of x"):
        layer.update_indices(x, codes[:, :8])
    with pytest.raises(InputError, match=r"^x: expected \(B, N, 12\)"):
        layer.expire_codes_(torch.randn(1, 9, DIM + 1))
    layer.update_indices(x, codes)
    layer.expire_codes_(x)


SIZES = {
    taming.VectorQuantizer: {"n_e": SIZE, "e_dim": DIM, "beta": 0.25},
    taming.VectorQuantizer2: {"n_e": SIZE, "e_dim": DIM, "beta": 0.25},
    taming.EmbeddingEMA: {"num_tokens": SIZE, "codebook_dim": DIM},
    taming.EMAVectorQuantizer: {"n_embed": SIZE, "embedding_dim": DIM, "beta": 0.25},
    llamagen.VectorQuantizer: {
        "n_e": SIZE,
        "e_dim": DIM,
        "beta": 0.25,
        "entropy_loss_ratio": 0.1,
        "l2_norm": True,
        "show_usage": True,
    },
    titok.VectorQuantizer: {"codebook_size": SIZE, "token_size": DIM},
    diffusers.VectorQuantizer: {"n_e": SIZE, "vq_embed_dim": DIM, "beta": 0.25},
    VectorQuantize: {"dim": DIM, "codebook_size": SIZE},
}
USED = {
    "kmeans_iters": {"kmeans_init": True},
    "sample_codebook_temp": {"stochastic_sample_codes": True},
    "directional_reparam_variance": {"directional_reparam": True, "threshold_ema_dead_code": 1},
    "sync_update_v": {"learnable_codebook": True, "ema_update": False},
    "codebook_diversity_temperature": {"codebook_diversity_loss_weight": 1.0},
    "orthogonal_reg_max_codes": {"orthogonal_reg_weight": 1.0},
}


def _numbers(kind):
    numbers = ("int", "float", "int | None")
    return [p.name for p in inspect.signature(kind).parameters.values() if p.annotation in numbers]


@pytest.mark.parametrize("kind", SIZES)
def test_a_size_is_whole_and_at_least_one(kind):
    for name in [*SIZES[kind]][:2]:
        for bad in (0, -1, float("nan"), 2.5, True, "3"):
            with pytest.raises(InputError, match=f"^{name}: expected at least 1 and whole, got "):
                kind(**SIZES[kind] | {name: bad})
        kind(**SIZES[kind] | {name: np.int64(4)})


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SIZES for name in _numbers(kind)])
def test_what_is_no_number_is_refused(kind, name):
    for bad in ("3", [1]):
        with pytest.raises(InputError, match=f"^{name}: "):
            kind(**SIZES[kind] | USED.get(name, {}) | {name: bad})


@pytest.mark.parametrize("name", ["beta", "decay", "eps"])
@pytest.mark.parametrize("number", [0, -1, True, float("nan"), np.float32(0.5), torch.tensor(0.5)])
def test_a_weight_is_any_number_as_in_the_originals(name, number):
    taming.EMAVectorQuantizer(**SIZES[taming.EMAVectorQuantizer] | {name: number})(_input("taming"))


def test_numbers_that_fail_in_the_first_step_are_refused_before_it():
    given = {"dim": DIM, "codebook_size": SIZE}
    with pytest.raises(InputError, match=r"^directional_reparam_variance: expected at least 0, got -1"):
        VectorQuantize(**given | USED["directional_reparam_variance"], directional_reparam_variance=-1)
    for bad in (0, 2.5):
        with pytest.raises(InputError, match=r"^orthogonal_reg_max_codes: expected at least 1 and whole"):
            VectorQuantize(**given, orthogonal_reg_weight=1.0, orthogonal_reg_max_codes=bad)


def test_numbers_that_are_not_used_are_not_looked_at():
    unused = {"decay": None, "eps": None, "ema_update": False, "sample_codebook_temp": None, "kmeans_iters": None}
    layer = VectorQuantize(DIM, SIZE, **unused, orthogonal_reg_max_codes=0, directional_reparam_variance=-1)
    layer(_input("plain"))
    VectorQuantize(DIM, SIZE, orthogonal_reg_weight=1.0, orthogonal_reg_max_codes=float("inf"))(_input("plain"))
