"""The report of a prior's run: what it draws, how it completes photos, how its training went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import read_image
from dqcore.data.listing import bare_name
from dqcore.inference.complete import complete
from dqcore.inference.photos import list_photos
from dqcore.inference.sample import decode_preview, decode_sequence, load_pair
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.report.charts import prior_charts
from dqcore.report.page import Gallery, Page, write_page
from dqcore.report.run import computed_on, how_far, while_it_trained
from dqcore.training.log import Row, read_metrics

__all__ = ["is_prior", "report_prior"]

INTRO = (
    "A prior learned which codes follow which. From nothing it draws the codes of new images, and a tokenizer's "
    "decoder turns them into pixels; from a part of a photo it draws the rest."
)
SAMPLES, SEED = 16, 0


def is_prior(config: dict[str, Any]) -> bool:
    """Whether the description of a run, its ``config.json``, is that of a prior."""
    return "codes" in config


def report_prior(
    run: Path,
    config: dict[str, Any],
    *,
    images: Path | None = None,
    out: Path | None = None,
    max_photos: int = 4,
    device: str = "cpu",
) -> Path:
    """Draw samples from a run's prior and write its report.

    Args:
        run: Folder of the run.
        config: Its description.
        images: Photos to complete, a file, a folder or a ``.txt`` list; none are completed without.
        out: The HTML file; ``report.html`` in the run's folder by default.
        max_photos: Photos completed, at most.
        device: Where to run the models.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: The tokenizer that belongs to the prior is missing, or the images are.
    """
    prior, tokenizer = load_pair(run, None, device)
    rows = read_metrics(run / "metrics.jsonl")
    galleries = _samples(prior, tokenizer)
    if images is not None:
        galleries.append(_completions(prior, tokenizer, list_photos([images])[:max_photos]))
    galleries += while_it_trained(run, "The same samples each time")
    page = Page(
        title=f"{config['options']['preset']}: a report",
        intro=INTRO,
        headline=_headline(config, rows),
        galleries=galleries,
        charts=prior_charts(rows),
        settings=_settings(config) | how_far(run),
    )
    return write_page(out or run / "report.html", page)


def _samples(prior: Any, tokenizer: Any) -> list[Gallery]:
    labels = torch.arange(SAMPLES) % prior.config.num_classes if prior.config.num_classes else None
    drawn = prior.generate(SAMPLES, labels, seed=SEED)
    images = decode_sequence(tokenizer, drawn)
    found = [Gallery("Images from nothing", f"Drawn with seed {SEED}.", [(image, "") for image in images])]
    if isinstance(prior, DQTransformer):
        preview = decode_preview(tokenizer, prior.generate(SAMPLES, labels, seed=SEED, stop_after=0))
        pairs = [(part[i], name) for i in range(4) for part, name in ((preview, "coarse codes"), (images, "all codes"))]
        remark = "The regions that need little come first; the rest stays open until their codes come."
        found.append(Gallery("Coarse to fine", remark, pairs))
    return found


def _completions(prior: Any, tokenizer: Any, paths: list[Path]) -> Gallery:
    pictures: list[tuple[Tensor, str]] = []
    for path in paths:
        label = 0 if prior.config.num_classes and not prior.config.label_dropout else None
        found = complete(prior, tokenizer, read_image(path), "upper", 2, labels=label, seed=SEED)
        pictures += [(found.photo, bare_name(path.name)), (found.given, "kept")]
        pictures += [(image, "completed") for image in found.images]
    return Gallery("The lower half imagined", "The codes of the upper half are kept.", pictures)


def _headline(config: dict[str, Any], rows: list[Row]) -> list[dict[str, str]]:
    cards = [("Parameters", f"{config['parameters']:,}", "", config["options"]["preset"])]
    last = next((row for row in reversed(rows) if "val_bits_per_image" in row), None)
    if last is not None:
        cards.append(("Bits per image", f"{last['val_bits_per_image']:,.0f}", "", "codes of validation images"))
    cards.append(("Steps", f"{config['steps']:,}", "", f"of {config['options']['token_budget']:,} tokens"))
    return [dict(zip(("name", "value", "unit", "remark"), card, strict=True)) for card in cards]


def _settings(config: dict[str, Any]) -> dict[str, object]:
    options = config["options"]
    return {
        "model": f"{options['preset']}, {config['parameters']:,} parameters",
        "codes": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in config["codes"].items()),
        "steps": f"{config['steps']:,} of {options['token_budget']:,} tokens",
        "seed": options["seed"],
        "device": computed_on(config),
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
    }
