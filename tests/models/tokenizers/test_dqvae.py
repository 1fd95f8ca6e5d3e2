import copy
import dataclasses
import itertools

import pytest
import torch

from dqcore import DQVAE, DQVAEConfig
from dqcore.codebook.modules import count_numbers
from dqcore.models.tokenizers.dqvae import PRESETS

TINY = ["dqvae-dual-tiny", "dqvae-dual-entropy-tiny", "dqvae-triple-tiny"]
COUNTS = {"dqvae-dual": 48_098_437, "dqvae-dual-entropy": 47_833_731, "dqvae-triple": 74_010_502}


def build(name, **overrides):
    """A model whose codes spread over the whole codebook, as they do after training."""
    model = DQVAE.from_preset(name, **overrides).eval()
    with torch.no_grad():
        features = model.quant_conv(model.encoder(detailed(2))[-1])
        model.quantizer.codebook.weight.normal_().mul_(features.std()).add_(features.mean())
    return model


def detailed(batch, height=64, width=96):
    """Images whose regions differ in how much they hold."""
    amplitude = torch.rand(batch, 1, height // 8, width // 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return amplitude * (2 * torch.rand(batch, 3, height, width) - 1)


def num_codes(grain):
    return (4**grain).flatten(1).sum(1).tolist()


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_counts_are_the_papers(name, count):
    with torch.device("meta"):
        model = DQVAE.from_preset(name)
    assert sum(count_numbers(model)) == count


@pytest.mark.parametrize("name", PRESETS)
def test_presets_construct(name):
    with torch.device("meta"):
        assert DQVAE.from_preset(name).config == PRESETS[name]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)], ids=str)
def test_shapes_at_any_multiple_of_the_coarsest_stride(name, size):
    model = DQVAE.from_preset(name).eval()
    images = detailed(2, *size)
    coarse, fine = model.config.strides[0], model.config.strides[-1]
    encoding, output = model.encode(images), model(images)
    assert encoding.codes.shape == (2, size[0] // fine, size[1] // fine)
    assert encoding.grain.shape == (2, size[0] // coarse, size[1] // coarse)
    assert encoding.quantized.shape == (2, model.config.dim, *encoding.codes.shape[1:])
    assert output.reconstruction.shape == images.shape
    if "entropy" in name:
        assert encoding.gate_logits is None and encoding.entropy.shape == encoding.grain.shape
        assert output.budget_loss == 0
    else:
        assert encoding.gate_logits.shape == (*encoding.grain.shape, model.config.num_granularities)
        assert encoding.entropy is None


@pytest.mark.parametrize("name", TINY)
def test_forward_is_decode_of_encode(name):
    model = build(name)
    images = detailed(2)
    with torch.no_grad():
        encoding, output = model.encode(images), model(images)
        assert torch.equal(output.codes, encoding.codes)
        assert torch.equal(output.grain, encoding.grain)
        assert len(encoding.codes.unique()) > 20
        torch.testing.assert_close(model.decode(encoding.codes, encoding.grain), output.reconstruction)
        torch.testing.assert_close(model.decode(encoding.codes), output.reconstruction)
        assert torch.equal(model(images).reconstruction, output.reconstruction)


def test_a_coarse_code_fills_its_block():
    model = build("dqvae-triple-tiny")
    encoding = model.encode(detailed(1), ratio=(0.4, 0.2))
    for row, column in itertools.product(range(2), range(3)):
        block = encoding.codes[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        side = 4 // 2 ** int(encoding.grain[0, row, column])
        corners = block[::side, ::side]
        assert torch.equal(block, corners.repeat_interleave(side, 0).repeat_interleave(side, 1))


@pytest.mark.parametrize("name", TINY)
def test_an_image_does_not_depend_on_its_batch(name):
    model = build(name)
    images = detailed(3)
    with torch.no_grad():
        batch = model.encode(images)
        ranked = model.encode(images, num_codes=30)
        for index in range(3):
            alone = model.encode(images[index : index + 1])
            assert torch.equal(alone.codes[0], batch.codes[index])
            assert torch.equal(alone.grain[0], batch.grain[index])
            alone = model.encode(images[index : index + 1], num_codes=30)
            assert torch.equal(alone.codes[0], ranked.codes[index])


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_parameter(name):
    model = DQVAE.from_preset(name)
    output = model(detailed(2))
    (output.reconstruction.square().mean() + output.commitment_loss + output.budget_loss).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


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


def test_holes_decode():
    model = build("dqvae-dual-tiny")
    codes = model.encode(detailed(1)).codes
    holes = codes.clone()
    holes[:, -1, -1] = model.config.codebook_size
    whole, partial = model.decode(codes), model.decode(holes)
    assert partial.isfinite().all()
    assert not torch.equal(partial, whole)


@pytest.mark.parametrize("router", ["feature", "entropy", "gain"])
def test_compiles_whole(router):
    model = build("dqvae-dual-tiny", router=router)
    images = detailed(1, 32, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(images).codes, model(images).codes)


def test_only_in_training_does_a_gain_router_add_its_loss():
    sizes = {"channels": 8, "latent_channels": 16, "dim": 16, "router_groups": 0}
    model = build("dqvae-dual-tiny", router="gain", **sizes)
    assert model(detailed(2)).budget_loss == 0
    model.train()(detailed(2)).budget_loss.backward()
    assert all(parameter.grad is not None for parameter in model.router.parameters())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_trains_under_bfloat16_autocast():
    model = DQVAE.from_preset("dqvae-dual-tiny")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(detailed(2))
    assert output.commitment_loss.dtype == output.budget_loss.dtype == torch.float32
    (output.reconstruction.float().square().mean() + output.commitment_loss + output.budget_loss).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_learns_an_image():
    model = DQVAE.from_preset("dqvae-dual-tiny", initialisation="kmeans")
    images = detailed(1, 32, 32).clamp(-0.5, 0.5).roll(3, 1).cumsum(2).tanh()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        output = model(images)
        loss = (output.reconstruction - images).abs().mean()
        optimiser.zero_grad()
        (loss + output.commitment_loss + output.budget_loss).backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_one_number_is_a_target_ratio_for_two_granularities():
    assert DQVAEConfig(target_ratio=0.3).target_ratio == (0.3,)


def test_random_router():
    model = DQVAE(dataclasses.replace(PRESETS["dqvae-dual-tiny"], router="random")).eval()
    encoding = model.encode(detailed(2))
    assert encoding.grain.flatten(1).sum(1).tolist() == [12, 12]
    assert encoding.gate_logits is encoding.entropy is None
    assert num_codes(model.encode(detailed(2), num_codes=40).grain) == [39, 39]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 40, 32), "images: expected height and width to be multiples of 16"),
        (torch.zeros(3, 32, 32), "images: expected \\(B, 3, H, W\\)"),
        (torch.zeros(1, 1, 32, 32), "images: expected \\(B, 3, H, W\\)"),
        (torch.zeros(0, 3, 32, 32), "images: expected"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "images: expected a floating tensor"),
        ("photo.png", "images: expected a floating tensor"),
    ],
)
def test_invalid_images(images, message):
    model = DQVAE.from_preset("dqvae-dual-tiny")
    with pytest.raises((ValueError, TypeError), match=message):
        model(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.5, "num_codes": 10}, "either ratio or num_codes"),
        ({"ratio": 1.5}, "ratio: expected shares"),
        ({"ratio": (0.3, 0.3)}, "ratio: expected 1 shares"),
        ({"num_codes": 3}, "num_codes: expected at least 4"),
        ({"num_codes": 8.5}, "num_codes: expected an int"),
        ({"num_codes": torch.tensor([8, 8, 8])}, "num_codes: expected an int"),
    ],
)
def test_invalid_budgets(arguments, message):
    model = DQVAE.from_preset("dqvae-dual-tiny")
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(2, 3, 32, 32), **arguments)


@pytest.mark.parametrize(
    ("codes", "grain", "message"),
    [
        (torch.zeros(1, 4, 4), None, "codes: expected a \\(B, H, W\\) int64"),
        (torch.zeros(1, 3, 4, dtype=torch.int64), None, "codes: expected height and width"),
        (torch.full((1, 4, 4), 257), None, "codes: expected values in \\[0, 256\\]"),
        (torch.full((1, 4, 4), -1), None, "codes: expected values"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4), "grain: expected shape \\(1, 2, 2\\)"),
    ],
)
def test_invalid_codes(codes, grain, message):
    with pytest.raises(ValueError, match=message):
        DQVAE.from_preset("dqvae-dual-tiny").decode(codes, grain)


@pytest.mark.parametrize(
    "overrides",
    [
        {"strides": (16,)},
        {"strides": (16, 4)},
        {"strides": (12, 6)},
        {"encoder_multipliers": (1, 1)},
        {"decoder_multipliers": (1, 1, 2, 2, 4)},
        {"groups": 48},
        {"position": "sine"},
        {"resolution": 100},
        {"router": "learned"},
        {"gate": "gelu"},
        {"budget": "none"},
        {"target_ratio": (0.5, 0.5)},
        {"target_ratio": (1.2,)},
        {"router_groups": 7},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"budget_weight": -1.0},
        {"entropy_bins": (1.0, 0.0)},
        {"entropy_bins": (0.0,)},
        {"latent_channels": 0, "router_groups": 0},
        {"resolution": 0},
        {"codebook_size": 0},
        {"initialisation": "zeros"},
    ],
    ids=str,
)
def test_invalid_config_names_the_field(overrides):
    name = next(iter(overrides))
    with pytest.raises(ValueError, match=f"^{name}: "):
        DQVAEConfig(**overrides)


def test_what_a_gain_router_tries_teaches_the_codebook_nothing():
    model, images = DQVAE.from_preset("dqvae-dual-tiny", router="gain").train(), torch.rand(4, 3, 32, 32)
    other = copy.deepcopy(model)
    model(images)
    other.encode(images)
    expected = other.quantizer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.quantizer.state_dict().items())
