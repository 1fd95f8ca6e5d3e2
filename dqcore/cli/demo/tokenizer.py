"""The demo's first half: a small DQ-VAE, trained on the photographs that ship with the package while you wait.

Its router goes by the entropy of each region (the paper's repository calls that its better version), with thresholds
fitted to the training photographs. In the minutes that a demo has, the learned router does not yet follow detail: its
gradient needs many more steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dqcore.data.photos import sample_folder
from dqcore.errors import InputError
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.progress import plain_lines
from dqcore.training import TokenizerTraining, train_tokenizer

__all__ = ["PRESET", "STEPS", "new_model", "tokenizer_options", "train_demo_tokenizer"]

PRESET = "dqvae-dual-entropy-tiny"
STEPS = 1000
#: What differs from the preset: narrower, so that one core manages eight steps a second.
NETWORK: dict[str, Any] = {
    "dim": 32,
    "latent_channels": 32,
    "encoder_multipliers": (1, 1, 2, 2, 2),
    "decoder_multipliers": (1, 1, 2, 2),
    "encoder_attention": (16,),
    "decoder_attention": (),
    "groups": 4,
    "position": "none",  # trained on crops, used on whole photographs
    "initialisation": "kmeans",
    "restart": True,
    "decay": 0.98,  # the run is short, so the codebook must follow the encoder quickly
    "resolution": 128,
}


def train_demo_tokenizer(options: TokenizerTraining, steps: int) -> DQVAE:
    """Train a new network with the options of :func:`tokenizer_options` for that many steps, and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = new_model()
    print(f"training {PRESET} on sample photographs for {steps} steps", flush=True)
    train_tokenizer(options, model=model, progress=plain_lines(steps))
    return model


def new_model() -> DQVAE:
    """A new network. Its convolutions keep their input's variance, so it learns colour hundreds of steps sooner."""
    model = DQVAE.from_preset(PRESET, **NETWORK)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)
    return model.to(memory_format=torch.channels_last)


def tokenizer_options(out: Path, seed: int, steps: int) -> TokenizerTraining:
    """How the demo trains its tokenizer.

    Args:
        out: Folder of the run.
        seed: Decides the weights, the crops and their order.
        steps: Optimiser steps, at least 1.
    """
    if steps < 1:
        raise InputError(f"steps: expected at least 1, got {steps}")
    return TokenizerTraining(
        data=sample_folder("train"),
        validation=sample_folder("heldout"),
        preset=PRESET,
        out=out,
        steps=steps,
        batch_size=8,
        image_size=64,
        resize=128,
        in_memory=True,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=min(30, steps),
        gradient_clip=1.0,
        average_decay=0.995,
        perceptual="none",
        discriminator=False,
        seed=seed,
        device="cpu",
        log_every=10,
        validate_every=100,
        checkpoint_every=max(steps, 1),
        workers=0,
    )
