"""What the demo's prior draws, for the report: samples, one of them coarse to fine, and completed photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.batches import Crops
from dqcore.data.crops import CenterCrop
from dqcore.data.images import uint8_to_float
from dqcore.data.photos import sample_photos
from dqcore.inference.sample import decode_preview, decode_sequence, load_pair
from dqcore.ops.pack_codes import pack_codes
from dqcore.report.page import Gallery
from dqcore.training.prior.recipes import RECIPES

__all__ = ["galleries", "upper_half"]


@torch.no_grad()
def galleries(run: Path, seed: int) -> list[Gallery]:
    """The report's sections about the prior.

    Args:
        run: Folder of the demo's run, whose prior lies in ``prior``.
        seed: Decides the samples.
    """
    prior, tokenizer = load_pair(run / "prior")
    samples = prior.generate(16, seed=seed, temperature=0.95)
    preview = prior.generate(16, seed=seed, temperature=0.95, stop_after=0)
    drawn = decode_sequence(tokenizer, samples)
    first = decode_preview(tokenizer, preview)
    # The four samples whose regions are shared most evenly between coarse and fine.
    even = (2 * preview.lengths - samples.region_grid[0] * samples.region_grid[1]).abs().argsort(stable=True)[:4]
    stages = [(part[i], name) for i in even for part, name in ((first, "coarse codes"), (drawn, "all codes"))]
    return [
        Gallery(
            "Images from nothing",
            "A transformer learned, in about a minute, which codes follow which. That is far too short for pictures: "
            "these are blocks of colour, and show that drawing works. dqcore sample draws with a prior trained longer.",
            [(picture, "") for picture in drawn],
        ),
        Gallery(
            "Coarse to fine",
            "It draws the regions that need little first; the rest stays open until their codes come.",
            stages,
        ),
        Gallery(
            "The lower half imagined",
            "Of photographs never seen in training, the codes of the upper half are given.",
            _completions(prior, tokenizer, seed),
        ),
    ]


def _completions(prior: Any, tokenizer: Any, seed: int) -> list[tuple[Tensor, str]]:
    recipe = RECIPES["small"]
    crops = Crops(sample_photos("heldout"), CenterCrop(recipe.image_size, recipe.resize or recipe.image_size))
    chosen = range(0, len(crops), max(1, len(crops) // 4))[:4]
    photos = uint8_to_float(torch.stack([crops[0, index].image for index in chosen]))
    encoding = tokenizer.encode(photos)
    whole = pack_codes(encoding.codes, encoding.grain, num_granularities=prior.config.num_granularities)
    half = upper_half(whole)
    shown = [photos, decode_preview(tokenizer, half)]
    shown += [decode_sequence(tokenizer, prior.generate(4, given=half, seed=seed + n)) for n in range(2)]
    captions = ("photograph", "given", "completed", "completed again")
    return [(part[i], name) for i in range(len(photos)) for part, name in zip(shown, captions, strict=True)]


def upper_half(sequence: CodeSequence) -> CodeSequence:
    """The codes of each image that lie in the upper half of its regions."""
    rows, columns = sequence.region_grid
    return sequence.where((torch.arange(rows) < rows // 2)[:, None].expand(rows, columns))
