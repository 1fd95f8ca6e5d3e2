"""The second half of ``dqcore demo``: a small DQ-Transformer on the codes of the tokenizer just trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.batches import Crops
from dqcore.data.crops import CenterCrop
from dqcore.data.images import uint8_to_float
from dqcore.data.photos import sample_folder, sample_photos
from dqcore.inference.sample import decode_preview, decode_sequence, load_pair
from dqcore.ops.pack_codes import pack_codes
from dqcore.report.page import Gallery
from dqcore.training.prior.run import PriorRun, PriorTraining, train_prior

__all__ = ["galleries", "train_demo_prior"]

#: Pixels of the crops that the prior learns, and of its samples.
SIZE = 64
STEPS = 250


def train_demo_prior(out: Path, seed: int, steps: int | None) -> PriorRun:
    """Train on the codes of crops of the sample photographs, in the folder ``prior`` of the demo's run."""
    options = PriorTraining(
        data=sample_folder("train"),
        tokenizer=out,
        out=out / "prior",
        preset="dqtransformer-tiny",
        image_size=SIZE,
        resize=96,
        views=8,
        validation_share=0.03,
        steps=STEPS if steps is None else min(steps, STEPS),
        token_budget=1_500,
        learning_rate=2e-3,
        warmup_steps=20,
        gradient_clip=1.0,
        average_decay=0.98,
        dropout=0.0,
        seed=seed,
        device="cpu",
        log_every=50,
        validate_every=125,
    )
    with _plain_progress(options) as progress:
        return train_prior(options, progress=progress)


@torch.no_grad()
def galleries(run: Path, seed: int) -> list[Gallery]:
    """Samples, one of them as it comes about, and photographs completed from their upper half."""
    prior, tokenizer = load_pair(run / "prior")
    samples = prior.generate(16, seed=seed, temperature=0.95)
    preview = prior.generate(16, seed=seed, temperature=0.95, stop_after=0)
    drawn = decode_sequence(tokenizer, samples)
    first = decode_preview(tokenizer, preview)
    even = (2 * preview.lengths - samples.region_grid[0] * samples.region_grid[1]).abs().argsort(stable=True)[:4]
    stages = [(part[i], name) for i in even for part, name in ((first, "coarse codes"), (drawn, "all codes"))]
    return [
        Gallery(
            "Images from nothing",
            "A transformer learned, in about a minute, which codes follow which. It has seen little: textures, edges "
            "and skies, not things.",
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
    crops = Crops(sample_photos("heldout"), CenterCrop(SIZE, 96))
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
    """The codes of the upper half of the regions of each image."""
    rows, columns = sequence.region_grid
    keep = sequence.positions // (columns << sequence.grains) >> sequence.grains < rows // 2
    images = torch.arange(len(sequence)).repeat_interleave(sequence.lengths.long())
    ends = torch.bincount(images[keep], minlength=len(sequence)).cumsum(0)
    return CodeSequence(
        sequence.codes[keep],
        sequence.positions[keep],
        sequence.grains[keep],
        torch.cat([ends.new_zeros(1), ends]).int(),
        sequence.region_grid,
        sequence.num_granularities,
    )


@contextmanager
def _plain_progress(options: PriorTraining) -> Iterator[Any]:
    """None on a terminal, where training shows its own bar; else what prints a line for each validation."""
    if sys.stderr.isatty():
        yield None
        return

    def show(row: dict[str, Any]) -> None:
        if "val_bits_per_image" in row:
            numbers = f"held-out {row['val_bits_per_image']:.0f} bits an image"
            print(f"step {row['step']:>5} of {options.steps}: {numbers}", flush=True)

    yield show
