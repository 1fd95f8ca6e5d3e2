"""A saved tokenizer measured on a folder of images; the numbers come with the protocol that makes them comparable."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from dqcore.data.images import list_images
from dqcore.errors import InputError
from dqcore.inference.load import ImageBatches, hash_files, load_tokenizer
from dqcore.inference.measure import Evaluation, evaluate_tokenizer
from dqcore.nn.perceptual import PerceptualLoss

__all__ = ["EvaluationOptions", "evaluate_folder"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How a tokenizer is measured; also the options of ``dqcore evaluate``.

    Attributes:
        image_size: Height and width of the centre crop in pixels; by default what the tokenizer was made for.
        resize: Pixels of the shorter side before the crop; by default image_size.
        limit: Measure a random choice of this many images.
        seed: Decides that choice.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        vgg_weights: File of VGG16's weights (torchvision's vgg16-397923af.pth), to measure LPIPS too.
        batch_size: Images that go through the model together.
        device: auto, cpu, cuda or cuda:N.
    """

    image_size: int | None = None
    resize: int | None = None
    limit: int | None = None
    seed: int = 0
    ratio: float | None = None
    num_codes: int | None = None
    vgg_weights: Annotated[Path | None, arg(aliases=["--perceptual-weights"])] = None
    batch_size: int = 8
    device: str = "auto"


def evaluate_folder(
    folder: Path,
    checkpoint: Path,
    options: EvaluationOptions = EvaluationOptions(),
    *,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Evaluation, dict[str, Any], list[str]]:
    """Measure a tokenizer on centre crops of the images of a folder.

    Args:
        folder: Folder of images, searched recursively, or a ``.txt`` list of their paths.
        checkpoint: Folder of a saved tokenizer or of a training run.
        options: What to measure, and how.
        progress: Called after each image with the number of images read and the number of all.

    Returns:
        The numbers, the protocol (images, their hash, sizes, seed), and why each broken file was passed over.

    Raises:
        ValueError: An option is out of range, or no image can be read.
    """
    _check_positive(options)
    paths = _choose(list_images(folder), options)
    model = load_tokenizer(checkpoint, options.device)
    size, resize = _sizes(options, model.config)
    perceptual = None
    if options.vgg_weights is not None:
        perceptual = PerceptualLoss(options.vgg_weights).to(next(model.parameters()).device)
    images = ImageBatches(paths, size, resize, batch_size=options.batch_size, argument="folder", progress=progress)
    result = evaluate_tokenizer(model, images, ratio=options.ratio, num_codes=options.num_codes, perceptual=perceptual)
    protocol = {
        "images": len(images.good),
        "broken images": len(images.broken),
        "data hash": hash_files(images.good),
        "resize": resize,
        "image size": size,
        "ratio": options.ratio,
        "num codes": options.num_codes,
        "seed": options.seed,
    }
    return result, protocol, images.broken


def _check_positive(options: EvaluationOptions) -> None:
    for name in ("limit", "batch_size", "image_size", "resize"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")


def _choose(paths: list[Path], options: EvaluationOptions) -> list[Path]:
    """The images to measure, in their order."""
    if options.limit is None or options.limit >= len(paths):
        return paths
    chosen = set(random.Random(options.seed).sample(range(len(paths)), options.limit))
    return [path for index, path in enumerate(paths) if index in chosen]


def _sizes(options: EvaluationOptions, config: Any) -> tuple[int, int]:
    """Side of the centre crop, and of the shorter side before it; in pixels."""
    size = options.image_size or config.resolution
    if size % config.strides[0] or size < 16:
        raise InputError(f"image_size: expected a multiple of {config.strides[0]}, at least 16, got {size}")
    resize = options.resize or size
    if resize < size:
        raise InputError(f"resize: expected at least image_size ({size}), got {resize}")
    return size, resize
