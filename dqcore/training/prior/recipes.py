"""Recipes for training a prior: the paper's, and one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["RECIPES", "PriorRecipe"]


@dataclass(frozen=True)
class PriorRecipe:
    """Network, crops and schedule of a run. Each is the default of the option of the same name.

    Attributes:
        preset: Model preset.
        image_size: Height and width of a crop, in pixels.
        resize: Pixels of the shorter side before cropping; None: ``image_size``.
        views: Crops of each training image.
        steps: Optimiser steps.
        epochs: Passes over the codes, instead of steps.
        token_budget: Tokens in a step, in each process.
        learning_rate: Learning rate after the warm-up.
        warmup_steps: Steps of linear warm-up.
        gradient_clip: Largest norm of the gradient; None leaves it alone.
        average_decay: Decay of the moving average of the weights; None keeps none.
        dropout: Share of activations that dropout hides; None: the preset's.
        validate_every: Steps between two validations.
        start: Initial embeddings.
    """

    preset: str
    image_size: int = 256
    resize: int | None = None
    views: int = 1
    steps: int | None = None
    epochs: float | None = None
    token_budget: int = 20_000
    learning_rate: float = 5e-4
    warmup_steps: int = 0
    gradient_clip: float | None = None
    average_decay: float | None = None
    dropout: float | None = None
    validate_every: int = 2000
    start: Literal["random", "codes"] = "random"


#: ``paper`` follows the supplement. ``small`` is for some hundreds of photographs: many crops of each, no dropout.
#: ``photos`` made the prior in the package: minutes on a GPU.
RECIPES = {
    "small": PriorRecipe(
        "dqtransformer-tiny",
        image_size=64,
        resize=96,
        views=8,
        steps=250,
        token_budget=1_500,
        learning_rate=2e-3,
        warmup_steps=20,
        gradient_clip=1.0,
        average_decay=0.98,
        dropout=0.0,
        validate_every=125,
    ),
    "photos": PriorRecipe(
        "dqtransformer-small",
        image_size=256,
        resize=320,
        views=48,
        steps=4000,
        token_budget=16_000,
        learning_rate=1e-3,
        warmup_steps=100,
        gradient_clip=1.0,
        average_decay=0.995,
        validate_every=1000,
        start="codes",
    ),
    "paper": PriorRecipe("dqtransformer-base", epochs=100.0),
}
