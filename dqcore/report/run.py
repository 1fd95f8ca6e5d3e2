"""The report of a training run: measure its model, and write the page from the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dqcore.data.images import list_images, split_images
from dqcore.errors import InputError
from dqcore.inference.load import ImageBatches, load_tokenizer
from dqcore.inference.measure import Evaluation, evaluate_tokenizer
from dqcore.inference.reconstruct import Reconstruction
from dqcore.models.tokenizers.base import Encoding
from dqcore.report.page import Gallery, Photo, write_report
from dqcore.training.log import read_metrics

__all__ = ["report_run"]


def report_run(
    run: Path,
    *,
    images: Path | None = None,
    out: Path | None = None,
    title: str | None = None,
    note: str = "",
    max_photos: int = 12,
    max_images: int = 1000,
    device: str = "auto",
    galleries: Sequence[Gallery] = (),
) -> tuple[Path, Evaluation]:
    """Measure a run's model on its held-out images and write its report.

    Args:
        run: Folder of a training run.
        images: Other images to measure on, a folder or a ``.txt`` list.
        out: The HTML file; ``report.html`` in the run's folder by default.
        title: The page's heading.
        note: A sentence under the headline numbers.
        max_photos: Photographs shown, at most.
        max_images: Photographs measured, at most.
        device: Where to run the model.
        galleries: More pictures, after the photographs.

    Returns:
        The page's path, and what was measured.

    Raises:
        FileNotFoundError: the folder holds no run, or its images are gone.
        ValueError: the run's files cannot be read, or it held out no images and none were given.
    """
    config = _read_config(run)
    model = load_tokenizer(run, device)
    options = config["options"]
    size, resize = options["image_size"], options.get("resize")
    size = max(size, resize or size)
    batches = ImageBatches(_held_out(options, images), size, limit=max_images, argument="images")
    first = _FirstPhotos(model.config, max_photos)
    evaluation = evaluate_tokenizer(model, batches, each=first)
    photos = [Photo(path.stem, result) for path, result in zip(batches.good, first.results, strict=False)]
    page = write_report(
        out or run / "report.html",
        title=title or f"{options['preset']}: a report",
        model=model,
        evaluation=evaluation,
        photos=photos,
        rows=read_metrics(run / "metrics.jsonl"),
        settings=_settings(config, evaluation, size),
        note=note,
        galleries=galleries,
    )
    return page, evaluation


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    if not path.is_file() or not (run / "model").is_dir():
        raise FileNotFoundError(f"{run}: expected the folder of a training run, with config.json and model/")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        _ = config["options"]["preset"], config["options"]["image_size"], config["versions"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the description of a training run ({error})") from error
    return config


def _held_out(options: dict[str, Any], images: Path | None) -> list[Path]:
    """The images that the run did not train on."""
    if images is not None:
        return list_images(images)
    if options["validation"] is not None:
        return list_images(options["validation"])
    if not options["validation_share"]:
        raise InputError("images: the run held out no images; name a folder of some")
    data = Path(options["data"])
    root = data if data.is_dir() else data.parent
    return split_images(list_images(data), options["validation_share"], root=root)[1]


class _FirstPhotos:
    """Keeps the first reconstructions of an evaluation; called with each of its batches."""

    def __init__(self, config: Any, limit: int) -> None:
        self._config, self._limit = config, limit
        self.results: list[Reconstruction] = []

    def __call__(self, images: Tensor, encoding: Encoding, results: Tensor) -> None:
        count = min(len(images), self._limit - len(self.results))
        parts = (images, encoding.codes, encoding.grain, results)
        for image, codes, grain, result in zip(*(part[:count].cpu() for part in parts), strict=True):
            self.results.append(Reconstruction.of(image, image, codes, grain, result, self._config))


def _settings(config: dict[str, Any], evaluation: Evaluation, size: int) -> dict[str, object]:
    options, versions = config["options"], config["versions"]
    model = config.get("model")
    strides = model["strides"] if isinstance(model, dict) else "?"
    return {
        "model": f"{options['preset']}, {config['parameters']:,} parameters, strides {tuple(strides)}",
        "codebook": f"{len(evaluation.code_counts)} codes",
        "training images": config["data"]["training"],
        "measured on": f"{evaluation.num_images} held-out images, {size} × {size} pixels",
        "steps": f"{config['steps']:,} of {options['batch_size']} crops of {options['image_size']} pixels",
        "seed": options["seed"],
        "device": f"{config['device']}, {config['threads']} threads",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
