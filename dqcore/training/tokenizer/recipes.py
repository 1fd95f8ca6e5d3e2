"""The settings that the paper's supplement (section 1) and the released code give for training a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dqcore.training.schedule import Schedule

CropKind = Literal["random", "random-resized"]


@dataclass(frozen=True)
class Recipe:
    """Length, learning rate and crops of a run. Each but ``betas`` is the default of the option of the same name.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: Epochs of linear warm-up.
        crop: ``"random"``: shorter side to the crop's size, random square; ``"random-resized"``: a square of 75 to
            100 % of the area. Both are mirrored half of the time.
        schedule: Learning rate after the warm-up. The supplement names no schedule; the released code follows a
            cosine down to 0.
        base_learning_rate: Learning rate for each image of the global batch.
        betas: Adam's, for both networks.
        perceptual_weight: Weight of LPIPS.
        adversarial_maximum: Largest value of the adaptive weight, the supplement's "weight for adversarial loss".
        budget: Form of the budget loss. ``"released"`` doubles the loss of two granularities; of more, it weights the
            finest one's term only. None: as in the preset.
        restart: Whether unused codes are replaced by vectors of the batch. None: as in the preset (the paper's: no).
    """

    epochs: float
    warmup_epochs: float
    crop: CropKind
    schedule: Schedule = "constant"
    base_learning_rate: float = 4.5e-6
    betas: tuple[float, float] = (0.5, 0.9)
    perceptual_weight: float = 1.0
    adversarial_maximum: float = 0.75
    budget: Literal["paper", "released"] | None = None
    restart: bool | None = None


#: ``ffhq`` and ``imagenet`` follow the supplement; ``released`` the configuration of the authors' code for ImageNet.
RECIPES = {
    "ffhq": Recipe(epochs=150, warmup_epochs=5, crop="random-resized"),
    "imagenet": Recipe(epochs=50, warmup_epochs=0.5, crop="random"),
    "released": Recipe(epochs=50, warmup_epochs=0.1, crop="random", schedule="cosine", budget="released", restart=True),
}
