"""What the paper's supplement (section 1) prints about training the tokenizer, and where the released code differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dqcore.training.schedule import Schedule

CropKind = Literal["random", "random-resized"]


@dataclass(frozen=True)
class Recipe:
    """Length, learning rate and pre-processing of a training run; each is the default of an option of the same name.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: Epochs of linear warm-up.
        crop: ``"random"``: shorter side to the crop's size, random square; ``"random-resized"``: a square of 75 to
            100 % of the area. Both are mirrored half of the time.
        schedule: After the warm-up. The supplement prints none; the released code decays along a cosine to 0.
        base_learning_rate: Learning rate for each image of the global batch.
        betas: Adam's, for both networks.
        perceptual_weight: Of LPIPS.
        adversarial_maximum: Cap of the adaptive weight, "the weight for adversarial loss".
        budget: Form of the budget loss; ``"released"`` counts the dual term twice and leaves a triple's median term
            unweighted. None: the preset's.
        restart: Whether unused codes restart from the batch; None: the preset's (the paper's presets: no).
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
