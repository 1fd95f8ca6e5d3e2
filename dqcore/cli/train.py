"""``dqcore train tokenizer`` and ``dqcore train prior``."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from dqcore import training
from dqcore.training import PriorTraining, TokenizerTraining

__all__ = ["train_prior", "train_tokenizer"]


def train_tokenizer(options: Annotated[TokenizerTraining, arg(name="")]) -> None:
    """Train a tokenizer on a folder of images. Where a default is None, the recipe's value is used."""
    run = training.train_tokenizer(options)
    last = next((row for row in reversed(run.metrics) if "val_psnr" in row), None)
    numbers = f", {last['val_psnr']:.2f} dB on held-out images" if last else ""
    print(f"model in {run.path / 'model'}{numbers}; dqcore report {run.path} makes its report")


def train_prior(options: Annotated[PriorTraining, arg(name="")]) -> None:
    """Train a prior on a tokenizer's codes. The defaults are the paper's."""
    run = training.train_prior(options)
    last = next((row for row in reversed(run.metrics) if "val_bits_per_image" in row), None)
    numbers = f", {last['val_bits_per_image']:.1f} bits an image on held-out ones" if last else ""
    print(f"model in {run.path / 'model'}{numbers}; dqcore sample {run.path} draws from it")
