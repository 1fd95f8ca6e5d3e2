import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.training import TokenizerTraining

CONFIG = DQVAEConfig(
    strides=(8, 4),
    codebook_size=32,
    dim=16,
    latent_channels=16,
    channels=8,
    encoder_multipliers=(1, 1, 2, 2),
    decoder_multipliers=(1, 1, 2),
    encoder_attention=(),
    decoder_attention=(),
    num_blocks=1,
    groups=4,
    router_groups=4,
    position="none",
    resolution=32,
    initialisation="kmeans",
    restart=True,
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 24 pictures of discs on plain ground."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(0)

    def colour():
        return tuple(rng.randrange(40, 216) for _ in range(3))

    for index in range(24):
        image = Image.new("RGB", (40, 36), colour())
        for _ in range(3):
            x, y, size = rng.randrange(40), rng.randrange(36), rng.randrange(6, 20)
            ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=colour())
        image.save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture
def tiny():
    """Make a model of 40 thousand parameters; the same weights each time."""

    def make(**changes) -> DQVAE:
        torch.manual_seed(7)
        return DQVAE(replace(CONFIG, **changes))

    return make


@pytest.fixture
def options(pictures, tmp_path):
    """Make the options of a quick run into ``tmp_path / "run"``."""

    def make(**changes) -> TokenizerTraining:
        quick = {
            "data": pictures,
            "out": tmp_path / "run",
            "recipe": "imagenet",
            "steps": 8,
            "batch_size": 4,
            "image_size": 32,
            "resize": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "perceptual": "none",
            "discriminator_dim": 4,
            "validation_share": 0.1,
            "workers": 0,
            "log_every": 1,
            "validate_every": 4,
            "checkpoint_every": 3,
        }
        return TokenizerTraining(**{**quick, **changes})

    return make
