"""Recipes: the paper's settings for training a tokenizer, those of its released code, and one for a CPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from dqcore.backends import Machine
from dqcore.data.preprocessing import CropKind
from dqcore.training.schedule import Schedule

__all__ = ["RECIPES", "CropKind", "Recipe", "batch_for"]


@dataclass(frozen=True)
class Recipe:
    """Network, losses, length and crops of a run. Each but ``betas`` is the default of the option of the same name.

    Attributes:
        crop: ``"random"``: shorter side to ``resize``, random square; ``"random-at-most"``: the same, but small images
            are not enlarged; ``"random-resized"``: a square of 75 to 100 % of the area. All are mirrored half of the
            time. ``"center"``: the middle square, never mirrored.
        epochs: Passes over the training images.
        steps: Optimiser steps, instead of epochs.
        warmup_epochs: Epochs of linear warm-up.
        warmup_steps: Steps of linear warm-up, instead of epochs.
        preset: Model preset.
        batch_size: Images in a step, in each process; fewer where a GPU has little memory.
        image_size: Height and width of a crop, in pixels.
        resize: Pixels of the shorter side before cropping; None: ``image_size``.
        schedule: Learning rate after the warm-up. The supplement names no schedule; the released code follows a
            cosine down to 0.
        base_learning_rate: Learning rate for each image of the global batch.
        learning_rate: Learning rate whatever the batch; instead of ``base_learning_rate``.
        betas: Adam's, for both networks.
        gradient_clip: Largest norm of the gradient; None leaves it alone.
        average_decay: Decay of the moving average of the weights; None keeps none.
        reconstruction: Loss of pixels.
        perceptual: ``"auto"``: LPIPS where its weights are; ``"none"``: without.
        perceptual_weight: Weight of LPIPS.
        discriminator: Whether there is one.
        adversarial_maximum: Largest value of the adaptive weight, the supplement's "weight for adversarial loss".
        budget: Form of the budget loss. ``"released"`` doubles the loss of two granularities; of more, it weights the
            finest one's term only. None: as in the preset.
        restart: Whether unused codes are replaced by vectors of the batch. None: as in the preset (the paper's: no).
        threshold_images: Training images that an entropy router's thresholds are fitted to.
        log_every: Steps between two rows of metrics.
        validate_every: Steps between two validations.
    """

    crop: CropKind
    epochs: float | None = None
    steps: int | None = None
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    preset: str = "dqvae-dual"
    batch_size: int = 30
    image_size: int = 256
    resize: int | None = None
    schedule: Schedule = "constant"
    base_learning_rate: float | None = 4.5e-6
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.5, 0.9)
    gradient_clip: float | None = None
    average_decay: float | None = None
    reconstruction: Literal["l1", "l2", "colour"] = "l1"
    perceptual: Literal["auto", "none"] = "auto"
    perceptual_weight: float = 1.0
    discriminator: bool = True
    adversarial_maximum: float = 0.75
    budget: Literal["paper", "released"] | None = None
    restart: bool | None = None
    threshold_images: int = 2048
    log_every: int = 50
    validate_every: int = 2000


#: ``small`` was tuned for reconstructions after four minutes on two cores (commit messages tell by what numbers).
_SMALL = Recipe(
    crop="random-at-most",
    steps=2000,
    warmup_steps=30,
    preset="dqvae-small",
    batch_size=8,
    image_size=96,
    resize=512,
    schedule="cosine",
    base_learning_rate=None,
    learning_rate=1e-3,
    betas=(0.9, 0.99),
    gradient_clip=1.0,
    average_decay=0.995,
    reconstruction="l2",
    perceptual="none",
    discriminator=False,
    log_every=10,
    validate_every=250,
)

#: What the weights in the package were trained with: photographs, minutes on a GPU, for reconstruction alone.
_PHOTOS = Recipe(
    crop="random-at-most",
    steps=12000,
    warmup_steps=300,
    preset="dqvae-dual-small",
    batch_size=48,
    image_size=256,
    resize=768,
    schedule="cosine",
    base_learning_rate=None,
    learning_rate=1e-3,
    betas=(0.9, 0.99),
    gradient_clip=1.0,
    average_decay=0.999,
    reconstruction="l2",
    perceptual="none",
    discriminator=False,
    validate_every=4000,
)

#: ``ffhq`` and ``imagenet`` follow the supplement; ``released`` the configuration of the authors' code for ImageNet.
RECIPES = {
    "small": _SMALL,
    "small-adversarial": dataclasses.replace(_SMALL, discriminator=True),
    "photos": _PHOTOS,
    "ffhq": Recipe(epochs=150, warmup_epochs=5, crop="random-resized"),
    "imagenet": Recipe(epochs=50, warmup_epochs=0.5, crop="random"),
    "released": Recipe(epochs=50, warmup_epochs=0.1, crop="random", schedule="cosine", budget="released", restart=True),
}


def batch_for(batch_size: int, image_size: int, machine: Machine) -> int:
    """A recipe's batch, or a smaller one where a GPU's memory is small: the paper's 30 crops of 256 pixels want 32 GiB.

    Args:
        batch_size: The recipe's batch.
        image_size: Height and width of a crop, in pixels.
        machine: The machine; without a GPU the batch stays as it is.
    """
    if not machine.gpu_memory:
        return batch_size
    fits = int(machine.gpu_memory / 2**30 * 30 / 32 * (256 / image_size) ** 2)
    return max(1, min(batch_size, fits))
