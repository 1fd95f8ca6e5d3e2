"""What our ``VectorQuantize`` refuses or warns of."""

import pytest
import torch

from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.errors import InputError

pytest.importorskip("vector_quantize_pytorch")
DIM, SIZE = 12, 40


def test_targets_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"indices: expected shape \(2, 5\), got \(5, 2\)"):
        VectorQuantize(DIM, SIZE)(torch.randn(2, 5, DIM), indices=torch.zeros(5, 2, dtype=torch.int64))


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
