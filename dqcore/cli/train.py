"""``dqcore train tokenizer`` and ``dqcore train prior``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dqcore.training import PriorTraining, TokenizerTraining

__all__ = ["train_prior", "train_tokenizer"]


def train_tokenizer(options: TokenizerTraining) -> None:
    """Train, and say where the model is."""
    from dqcore.training import train_tokenizer as train

    run = train(options)
    last = next((row for row in reversed(run.metrics) if "val_psnr" in row), None)
    numbers = f", {last['val_psnr']:.2f} dB on held-out images" if last else ""
    print(f"model in {run.path / 'model'}{numbers}; dqcore report {run.path} makes its report")


def train_prior(options: PriorTraining) -> None:
    """Train, and say where the model is."""
    from dqcore.training import train_prior as train

    run = train(options)
    last = next((row for row in reversed(run.metrics) if "val_bits_per_image" in row), None)
    numbers = f", {last['val_bits_per_image']:.1f} bits an image on held-out ones" if last else ""
    print(f"model in {run.path / 'model'}{numbers}; dqcore sample {run.path} draws from it")
