"""What the tests of inference share: a small tokenizer."""

import pytest
import torch

import dqcore


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16).eval()
