"""DQ-VAE: arguments and settings that it refuses."""

import pytest
import torch

from dqcore import DQVAE, DQVAEConfig


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
