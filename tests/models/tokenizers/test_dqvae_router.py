"""DQ-VAE: how its router is trained, and how many codes it gives an image."""

import copy
import dataclasses

import pytest
import torch
from small_dqvae import TINY, build, detailed, num_codes

from dqcore import DQVAE, DQVAEConfig
from dqcore.models.tokenizers.dqvae import PRESETS


def test_the_router_learns_from_the_reconstruction_and_from_the_budget():
    model = DQVAE.from_preset("dqvae-dual-tiny", target_ratio=(0.99,))  # which no draw meets exactly
    for loss in ("reconstruction", "budget_loss"):
        model.zero_grad()
        getattr(model(detailed(2)), loss).square().sum().backward()
        assert all(parameter.grad.any() for parameter in model.router.gate.parameters())


def test_the_gate_changes_no_value():
    model = build("dqvae-dual-tiny")
    images = detailed(2)
    model.router.train()  # draws, and multiplies by the gate, but leaves the codebook as it is
    model.training = True
    torch.manual_seed(1)
    noisy = model.encode(images)
    model.training = False
    torch.manual_seed(1)
    assert torch.equal(noisy.codes, model.encode(images).codes)


def test_budget_in_evaluation_is_that_of_the_grain_map():
    model = build("dqvae-dual-tiny", target_ratio=(0.9,))
    output = model(detailed(3))
    fine = output.grain.float().mean()
    torch.testing.assert_close(output.budget_loss, 10 * (fine - 0.9) ** 2)


@pytest.mark.parametrize("name", ["dqvae-dual-tiny", "dqvae-dual-entropy-tiny"])
@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 1.0])
def test_ratio_is_exact_in_every_image(name, ratio):
    model = build(name)
    encoding = model.encode(detailed(3), ratio=ratio)
    assert encoding.grain.flatten(1).sum(1).tolist() == [round(24 * ratio)] * 3
    score = encoding.entropy if "entropy" in name else encoding.gate_logits.diff(dim=-1)[..., 0]
    for image, grain in zip(score, encoding.grain, strict=True):
        assert 0 < ratio < 1 or grain.unique().numel() == 1
        assert ratio in (0, 1) or image[grain == 1].min() >= image[grain == 0].max()


def test_ratio_of_three_granularities():
    grain = build("dqvae-triple-tiny").encode(detailed(2, 128, 160), ratio=(0.5, 0.2)).grain
    assert [torch.bincount(image.flatten()).tolist() for image in grain] == [[6, 10, 4]] * 2


@pytest.mark.parametrize("name", TINY)
def test_num_codes_is_a_budget(name):
    model = build(name)
    images = detailed(4, 64, 64)
    regions = (64 // model.config.strides[0]) ** 2
    budgets = torch.tensor([regions, regions + 10, 3 * regions, 10**6])
    counts = num_codes(model.encode(images, num_codes=budgets).grain)
    assert counts == [regions, regions + 9, 3 * regions - 2 * regions % 3, 64]
    assert num_codes(model.encode(images, num_codes=regions + 7).grain) == [regions + 6] * 4


@pytest.mark.parametrize("name", TINY)
def test_asking_for_what_the_router_chose_changes_nothing(name):
    model = build(name)
    images = detailed(3)
    if "entropy" in name:
        model.router.fit(images)
    natural = model.encode(images)
    asked = model.encode(images, num_codes=torch.tensor(num_codes(natural.grain)))
    assert torch.equal(asked.grain, natural.grain)
    assert torch.equal(asked.codes, natural.codes)


def test_only_in_training_does_a_gain_router_add_its_loss():
    sizes = {"channels": 8, "latent_channels": 16, "dim": 16, "router_groups": 0}
    model = build("dqvae-dual-tiny", router="gain", **sizes)
    assert model(detailed(2)).budget_loss == 0
    model.train()(detailed(2)).budget_loss.backward()
    assert all(parameter.grad is not None for parameter in model.router.parameters())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_one_number_is_a_target_ratio_for_two_granularities():
    assert DQVAEConfig(target_ratio=0.3).target_ratio == (0.3,)


def test_random_router():
    model = DQVAE(dataclasses.replace(PRESETS["dqvae-dual-tiny"], router="random")).eval()
    encoding = model.encode(detailed(2))
    assert encoding.grain.flatten(1).sum(1).tolist() == [12, 12]
    assert encoding.gate_logits is encoding.entropy is None
    assert num_codes(model.encode(detailed(2), num_codes=40).grain) == [39, 39]


def test_what_a_gain_router_tries_teaches_the_codebook_nothing():
    model, images = DQVAE.from_preset("dqvae-dual-tiny", router="gain").train(), 2 * torch.rand(4, 3, 32, 32) - 1
    other = copy.deepcopy(model)
    model(images)
    other.encode(images)
    expected = other.quantizer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.quantizer.state_dict().items())
