"""Every option of a tokenizer's training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from dqcore.backends import Machine, choose_device, this_machine
from dqcore.data.preprocessing import CROPS, CropKind, Preprocessing
from dqcore.distributed import TIMEOUT
from dqcore.errors import InputError
from dqcore.fields import check_fields
from dqcore.training.arguments import RIVALS, Arguments, renamed
from dqcore.training.tokenizer.recipes import RECIPES, batch_for

__all__ = ["FREE_ON_RESUME", "TokenizerTraining"]

#: Options that may differ when a run is resumed: they say where and how it runs, not what it computes. A run that was
#: begun when ``in_memory`` and ``vgg_weights`` had other names can be resumed because these two are among them.
FREE_ON_RESUME = frozenset(
    {"out", "resume", "steps", "epochs", "minutes", "vgg_weights", "init_from", "device", "workers", "in_memory"}
    | {"data", "compile", "timeout", "log_every", "checkpoint_every", "checkpoint_minutes", "keep_every", "tensorboard"}
)


@renamed(packed="in_memory", perceptual_weights="vgg_weights")
@dataclass(frozen=True)
class TokenizerTraining(Arguments):
    """Train a tokenizer on a folder of images.

    Where a default is None, the recipe's value is used, or one that suits the machine; what was chosen is logged and
    stands in the run's ``config.json``.
    """

    ADDED = Arguments.ADDED | {"reconstruction": "l1", "fast_jpeg": False}

    data: Path | None = None
    """Folder of images, searched recursively, .txt list of their paths, .tar or .zip file, LMDB database, or folder of
    such archives. Not needed with --resume."""
    recipe: Literal["small", "small-adversarial", "photos", "ffhq", "imagenet", "released"] | None = None
    """Network, losses, schedule and crops. small: a network that a CPU trains in minutes, for reconstruction alone;
    small-adversarial: the same with a discriminator;
    photos: the network of the weights in the package, for reconstruction alone too; ffhq, imagenet: the paper's;
    released: the authors' released configuration. By default small without a GPU and imagenet with one."""
    preset: str | None = None
    """Model preset."""
    out: Path = Path("runs/tokenizer")
    """Folder of the run."""
    steps: int | None = None
    """Optimiser steps; instead of epochs."""
    epochs: float | None = None
    """Passes over the training images."""
    minutes: float | None = None
    """Length of the run by the clock, from its start; the learning rate falls with time. Instead of steps or epochs."""
    batch_size: int | None = None
    """Images that go through the networks together, in each process."""
    accumulate: int = 1
    """Batches of a step, one after the other: larger than the memory holds. A gain router meets its share in each."""
    image_size: int | None = None
    """Height and width of a training crop in pixels."""
    resize: int | None = None
    """Pixels that the shorter side is resized to before a crop is cut; by default image_size, or more in small."""
    preprocessing: Preprocessing | None = None
    """Cut training crops as the paper does for this data set; instead of crop and resize."""
    crop: CropKind | None = None
    """How training crops are cut: a random square, the same without enlarging small images, a random square of 75 to
    100 % of the area, or the middle square, never mirrored."""
    flip: bool = True
    """Mirror half of the training crops, chosen at random."""
    in_memory: Annotated[bool, arg(aliases=["--packed"])] = False
    """Read all images once and keep them in memory (small folders); --workers then cut the crops. Where neither this
    nor --workers is given, the machine decides. Once called --packed."""
    fast_jpeg: bool = False
    """Decode large JPEG files at a part of their size, down to twice the pixels that are needed: faster, and not quite
    the same pixels."""
    validation: Path | None = None
    """Validation images; by default those of FFHQ's or CelebA-HQ's list beside the training images, else a share of the
    training images is held out."""
    validation_share: float = 0.02
    """Share of the images held out, at least 4 or a tenth if that is fewer; 0: none. Not with --validation or lists."""

    base_learning_rate: float | None = None
    """Learning rate for each image of the global batch (batch_size x accumulate x processes)."""
    learning_rate: float | None = None
    """Learning rate whatever the batch; instead of base_learning_rate."""
    schedule: Literal["constant", "cosine"] | None = None
    """Learning rate after the warm-up: constant, or a cosine that is 0 right after the last step."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate rises linearly."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly; instead of warmup_epochs."""
    gradient_clip: float | None = None
    """Largest norm of the tokenizer's gradient; where the recipe has none either, the gradient is left alone."""
    average_decay: float | None = None
    """Decay of a moving average of the weights, such as 0.999; the average is then what is saved."""

    reconstruction: Literal["l1", "l2", "colour"] | None = None
    """Loss of pixels: l1, the paper's absolute error; l2, squared error; colour, squared error of luma and of colour
    differences, with more weight on colour."""
    perceptual: Literal["auto", "lpips", "none"] | None = None
    """Perceptual loss; lpips needs VGG16's weights, auto uses it where they are."""
    vgg_weights: Annotated[Path | None, arg(aliases=["--perceptual-weights"])] = None
    """File of VGG16's weights (torchvision's vgg16-397923af.pth) for lpips; by default the one in torch's hub cache.
    Once called --perceptual-weights."""
    perceptual_weight: float | None = None
    """Weight of the perceptual loss."""
    discriminator: bool = True
    """Train against a patch discriminator, where the recipe has one: small and photos have none."""
    discriminator_start: int = 0
    """Step from which the discriminator is trained and the adversarial loss counts."""
    discriminator_dim: int = 64
    """Width of the discriminator."""
    adversarial_maximum: float | None = None
    """Largest value of the adaptive weight of the adversarial loss."""

    target_ratio: tuple[float, ...] | None = None
    """Target shares of regions at each granularity above the coarsest; by default the preset's."""
    budget_weight: float | None = None
    """Weight (lambda) of the budget loss; by default the preset's. With 0 the router chooses freely."""
    budget: Literal["paper", "released"] | None = None
    """Form of the budget loss; released counts the dual term twice, as the authors' code does."""
    restart: bool | None = None
    """Replace unused codes by vectors of the batch; by default as the preset or the recipe says."""
    codebook_size: int | None = None
    """Number of codes; by default the preset's."""
    initialisation: Literal["uniform", "kmeans"] | None = None
    """How the codebook starts; by default the preset's."""
    threshold_images: int | None = None
    """Training images that an entropy router's thresholds are fitted to before the first step."""

    seed: int = 0
    """Seed of the initial weights, the order of the images, their crops and the router's noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the networks; auto is bfloat16 on a GPU or CPU that multiplies in it. Losses and the codebook are
    always float32."""
    workers: int | None = None
    """Processes that read images; 0 reads them between the steps. By default as many as there are cores to spare."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile."""
    timeout: float = TIMEOUT
    """Under torchrun, seconds to wait for a process that does not answer before the run ends."""
    log_every: int | None = None
    """Steps between two rows of metrics.jsonl; there is one after the first step and at least every 15 seconds."""
    validate_every: int | None = None
    """Steps between two validations; there is always one at the end."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end, and one when a signal stops the run."""
    checkpoint_minutes: float = 5.0
    """Minutes after which a checkpoint is written, however few steps there were."""
    keep_every: int | None = None
    """Steps between two models that are kept, in kept/STEPS, to see how a model learns; by default only the last is."""
    tensorboard: bool = False
    """Also write TensorBoard events."""
    resume: bool = False
    """Continue the run in out from its last checkpoint, to the same numbers as without the break. On the command line
    the options are those that the run was started with; name an option to change it."""
    init_from: Path | None = None
    """Folder of a saved model of the same preset to start from."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._at_least(1, "batch_size", "image_size", "log_every", "validate_every", "checkpoint_every", "keep_every")
        self._at_least(1, "accumulate", "discriminator_dim", "steps", "resize", "codebook_size", "threshold_images")
        self._more_than_0("epochs", "minutes", "base_learning_rate", "learning_rate", "gradient_clip")
        self._more_than_0("checkpoint_minutes", "timeout")
        self._at_least(0, "perceptual_weight", "adversarial_maximum", "budget_weight", "warmup_epochs", "warmup_steps")
        self._at_least(0, "discriminator_start", "workers", "seed")
        self._below_1("validation_share", kind="share")
        self._below_1("average_decay")
        if self.resize is not None and self.image_size is not None and self.resize < self.image_size:
            raise InputError(f"resize: expected at least image_size ({self.image_size}), got {self.resize}")
        self._only_one("steps", "epochs", "minutes")
        self._only_one("learning_rate", "base_learning_rate")
        self._only_one("warmup_steps", "warmup_epochs")
        self._only_one("preprocessing", "crop")
        self._only_one("preprocessing", "resize")

    @classmethod
    def small(cls, data: Path | str, out: Path | str = Path("runs/tokenizer"), **changes: Any) -> TokenizerTraining:
        """Options of recipe ``small``: a network that two CPU cores train in minutes, without a download.

        Args:
            data: Folder of images, searched recursively, or a ``.txt`` list of their paths.
            out: Folder of the run.
            **changes: Any other options, such as ``minutes=4`` or ``steps=500``; by default 2000 steps.
        """
        return cls(**{"recipe": "small", "data": data, "out": out, **changes})

    def resolved(self, machine: Machine | None = None) -> TokenizerTraining:
        """The same options with a value for each that was left open, from the recipe or for the machine.

        Args:
            machine: By default the one this runs on, with the GPU that ``device`` names.

        Raises:
            ValueError: There is no ``data``, or a size does not fit another one.
        """
        if self.data is None:
            raise InputError("data: expected a folder of images, or a .txt list of their paths")
        machine = this_machine(choose_device(self.device)) if machine is None else machine
        name = self.recipe or ("imagenet" if machine.gpu_memory else "small")
        recipe = RECIPES[name]
        filled = {field: value for field, value in dataclasses.asdict(recipe).items() if field in _FIELDS}
        given = {field for field in filled if getattr(self, field) is not None and field != "discriminator"}
        taken = given | {
            other for group in RIVALS if any(getattr(self, name, None) is not None for name in group) for other in group
        }
        filled = {field: value for field, value in filled.items() if field not in taken and value is not None}
        size = self.image_size or recipe.image_size
        filled |= {
            "recipe": name,
            "resize": self.resize or max(size, recipe.resize or size),
            "batch_size": self.batch_size or batch_for(recipe.batch_size, size, machine),
            "discriminator": self.discriminator and recipe.discriminator,
        }
        if self.preprocessing is not None:
            filled |= {"preprocessing": None, "crop": CROPS[self.preprocessing], "resize": size}
        return dataclasses.replace(self, **filled)

    def model_overrides(self, known: set[str]) -> dict[str, Any]:
        """What these options change in a model's config.

        Args:
            known: Names of the config's fields.

        Raises:
            ValueError: an option was given that this model does not have.
        """
        wanted: dict[str, Any] = {
            "resolution": self.image_size,
            "codebook_size": self.codebook_size,
            "initialisation": self.initialisation,
            "restart": self.restart,
            "target_ratio": self.target_ratio,
            "budget": self.budget if "budget" in known else None,  # a recipe's, for presets that have one
            "budget_weight": self.budget_weight,
        }
        chosen = {name: value for name, value in wanted.items() if value is not None}
        for name in chosen.keys() - known:
            raise InputError(f"{name}: preset {self.preset} has no such thing")
        return chosen


_FIELDS = frozenset(field.name for field in dataclasses.fields(TokenizerTraining))
