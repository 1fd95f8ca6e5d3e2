"""The headline results: presets, exact commands, and the GPU hours that they should take. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dqcore.data.preprocessing import Preprocessing
from dqcore.experiments.summary import summary, table

__all__ = ["ROWS", "Headline", "commands", "summarise"]

TITLE = "Headline results: commands and GPU hours"
#: Images a second on one H100: training of ``dqvae-dual`` at 256 x 256 and of ``dqtransformer-base``, and sampling.
TOKENIZER_RATE, PRIOR_RATE, SAMPLE_RATE = 76, 218, 66
#: Parameters of the large prior over those of the base one: its rates are not measured, they are divided by this.
LARGE = 611.2 / 308.9
SAMPLES = 50_000
PRIOR_EPOCHS = 100
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class Headline:
    """A result of the paper.

    Attributes:
        data: The data set.
        folder: What its folder is called in the commands.
        fid: The paper's Frechet inception distance.
        images: Training images.
        recipe: Of the tokenizer.
        epochs: Of the tokenizer.
        preprocessing: How images are cut, in both trainings.
        preset: Of the prior.
        classes: Whether the prior is class-conditional.
        views: Crops of an image that the prior sees, each in as many epochs fewer.
        beside: What the supplement compares it with (section 3.1), and its distance.
    """

    data: str
    folder: str
    fid: float
    images: int
    recipe: str
    epochs: int
    preprocessing: Preprocessing
    preset: str = "dqtransformer-base"
    classes: bool = False
    views: int = 1
    beside: str = "-"

    @property
    def tokenizer_hours(self) -> float:
        """GPU hours of the tokenizer."""
        return self.images * self.epochs / TOKENIZER_RATE / 3600

    @property
    def prior_hours(self) -> float:
        """GPU hours of the prior."""
        return self.images * PRIOR_EPOCHS / self._slower(PRIOR_RATE) / 3600

    @property
    def sample_hours(self) -> float:
        """GPU hours of 50,000 samples."""
        return SAMPLES / self._slower(SAMPLE_RATE) / 3600

    def _slower(self, rate: float) -> float:
        return rate / LARGE if self.preset == "dqtransformer-large" else rate


#: The epochs of CelebA-HQ and LSUN church are FFHQ's: neither paper nor supplement names others.
ROWS = (
    Headline("FFHQ", "ffhq", 4.91, 60_000, "ffhq", 150, "ffhq", views=10),
    Headline("CelebA-HQ", "celebahq", 6.54, 27_000, "ffhq", 150, "celebahq", beside="ViT-VQGAN 7.0"),
    Headline("LSUN church", "church", 6.21, 126_227, "ffhq", 150, "lsun", beside="RQ-VAE 7.45"),
    Headline("ImageNet, base", "imagenet", 7.34, 1_281_167, "imagenet", 50, "imagenet", classes=True),
    Headline("ImageNet, large", "imagenet", 5.11, 1_281_167, "imagenet", 50, "imagenet", "dqtransformer-large", True),
)


def commands(row: Headline) -> list[str]:
    """The four commands of a result, in their order."""
    run, classes = f"runs/{row.folder}", " --classes" if row.classes else ""
    model = f"{run}-{row.preset.partition('-')[2]}"
    return [
        f"dqcore train tokenizer --recipe {row.recipe} --preset dqvae-dual --data {row.folder}/train "
        f"--preprocessing {row.preprocessing} --validation {row.folder}/val --perceptual lpips --out {run}",
        f"dqcore train prior --recipe paper --preset {row.preset}{classes} --tokenizer {run} --data {row.folder}/train "
        f"--preprocessing {row.preprocessing} --views {row.views} --epochs {PRIOR_EPOCHS // row.views} --out {model}",
        f"dqcore sample {model} --count {SAMPLES} --out {model}/samples",
        f"dqcore evaluate --samples {model}/samples --reference {row.folder}/train --size 256 --metrics fid "
        f"--inception-weights {INCEPTION}",
    ]


def summarise() -> dict[str, Any]:
    """The table of hours, and how they were computed."""
    rows = [
        (
            row.data,
            f"{row.fid:.2f}",
            f"{row.images:,}",
            f"dqvae-dual, {row.epochs} epochs",
            row.preset,
            f"{row.tokenizer_hours:.0f}",
            f"{row.prior_hours:.0f}",
            f"{row.sample_hours:.1f}",
            row.beside,
        )
        for row in ROWS
    ]
    hours = ("hours, tokenizer", "hours, prior", f"hours, {SAMPLES:,} samples")
    columns = ("data", "FID of the paper", "images", "tokenizer", "prior", *hours, "FID beside it")
    notes = [
        "Computed, not measured: hours on one H100 = images x epochs / images a second / 3600. The rates were "
        f"measured: {TOKENIZER_RATE} images a second in the training of dqvae-dual at 256 x 256, on a busy machine; "
        f"{PRIOR_RATE} in that of dqtransformer-base, in bfloat16; {SAMPLE_RATE} in its sampling. The large prior's "
        f"rates are the base one's, divided by its {LARGE:.2f} times as many parameters. Priors train for "
        f"{PRIOR_EPOCHS} epochs.",
        "The authors' code cuts new crops of FFHQ and ImageNet in every epoch of the prior. Ours are cut and encoded "
        f"once, {ROWS[0].views} of each image of FFHQ; so many of ImageNet would take 74 GB of memory, hence one.",
        "Which images FFHQ's FID compares with, neither paper nor supplement says; here it is those of training. "
        "InceptionV3's weights come from torch-fidelity's releases.",
        *(f"{row.data}: `{'`, `'.join(commands(row))}`" for row in ROWS),
    ]
    return summary(TITLE, [], [table("One H100", columns, rows)], notes=notes)
