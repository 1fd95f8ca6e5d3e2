"""Priors of variable-length codes: coarse to fine, raster-dynamic, global-local; and raster on a fixed-length twin.

Of the paper: section 3.2 of the supplement. Frechet distances are from as many training photos as images are drawn: a
random choice by the arm's seed, the same for all designs of that seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codebook.modules import count_numbers
from dqcore.data.crops import CenterCrop
from dqcore.data.dataset import read_prepared
from dqcore.data.images import image_to_tensor, list_images
from dqcore.data.listing import choose
from dqcore.experiments.arms import Arm, dual, fixed, prior
from dqcore.experiments.claims import Claim, judge, together
from dqcore.experiments.measure import curve, metrics_of
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.summary import chart, series, summary, table
from dqcore.inference.sample import decode_sequence, load_pair
from dqcore.metrics.frechet import frechet_distance
from dqcore.metrics.intervals import Interval
from dqcore.metrics.networks import LITE0, LITE0_PACKAGES, efficientnet_lite0
from dqcore.ops.pack_codes import pack_codes
from dqcore.training import PriorTraining
from dqcore.training.prior.step import measure as measure_output

__all__ = ["arms", "crops_of", "measure", "measure_prior", "reference", "summarise"]

TITLE = "Priors"
OURS, RASTER = "dqtransformer", "raster"
DESIGNS = {OURS: "coarse to fine", "raster-dynamic": "raster-dynamic", "global-local": "global-local"}
#: Their FID on FFHQ (supplement, section 3.2 and table 2).
PAPER = {OURS: "4.91", "raster-dynamic": "about 18", "global-local": "about 24"}
STYLES = {OURS: "first", "raster-dynamic": "second", "global-local": "third"}
#: Images of which the bits are counted together.
BATCH = 16


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """The three designs on the codes of one tokenizer for each seed; a plain raster prior on VQGAN f16's."""
    found = []
    for seed in range(seeds):
        found += [prior(scale, design, dual(scale, seed, "feature")) for design in DESIGNS]
        found.append(prior(scale, RASTER, fixed(scale, seed, 16)))
    return found


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Bits of unseen photos' codes, images drawn each second, and their Frechet distance from the training photos."""
    found, model, tokenizer = measure_prior(arm, setting)
    start = time.perf_counter()
    images = decode_sequence(tokenizer, model.generate(setting.scale.samples, seed=arm.seed))
    found["images_per_second"] = len(images) / (time.perf_counter() - start)
    features = efficientnet_lite0(setting.scale.device)
    found["frechet"] = None
    if features is not None:
        real = crops_of(arm, setting, reference(list_images(setting.photos.train), setting.scale.samples, arm.seed))
        found["frechet"] = frechet_distance(features(images), features(real))
    return found


def reference(photos: Sequence[Path], samples: int, seed: int) -> list[Path]:
    """The photos that drawn images are compared with: as many, at least two, a random choice by the seed.

    The first ones by name would be those of few folders, which may be of one kind.
    """
    return choose(photos, max(2, samples), seed)


def measure_prior(arm: Arm, setting: Setting) -> tuple[dict[str, Any], Any, Any]:
    """What every prior is measured by; then the prior and its tokenizer.

    Returns:
        ``bits``: the bits of an image's codes on the central crops of the test photos, which neither the prior nor the
        tokenizer was trained on. ``parameters``. Curves of the losses, in training and validation.
    """
    model, tokenizer = load_pair(setting.run_folder(arm), None, setting.scale.device)
    rows = metrics_of(arm, setting)
    names = ("loss", "content_loss", "position_loss", "bits_per_image")
    found = {
        "bits": _bits(model, tokenizer, crops_of(arm, setting, setting.photos.test)),
        "parameters": count_numbers(model)[0],
        "training": {name: curve(rows, name) for name in names},
        "validation": {name: curve(rows, f"val_{name}") for name in names},
    }
    return found, model, tokenizer


def crops_of(arm: Arm, setting: Setting, paths: Any) -> Tensor:
    """The central crops of photos as the prior's training cuts its first view, ``(B, 3, size, size)`` in [-1, 1]."""
    options = PriorTraining(**dict(arm.options) | {"data": setting.photos.train, "tokenizer": setting.out}).resolved()
    assert options.image_size is not None
    cut = CenterCrop(options.image_size, options.resize or options.image_size)
    return torch.stack([image_to_tensor(read_prepared(path, cut)) for path in paths])


@torch.no_grad()
def _bits(model: Any, tokenizer: Any, images: Tensor) -> float:
    """Mean bits of an image's codes under a prior, special tokens included."""
    device = tokenizer.quantizer.codebook.weight.device
    granularities, total = tokenizer.config.num_granularities, 0.0
    for batch in images.split(BATCH):
        encoding = tokenizer.encode(batch.to(device))
        sequence = pack_codes(encoding.codes, encoding.grain, num_granularities=granularities)
        numbers = measure_output(model(sequence, None), len(batch), granularities)
        total += float(numbers["bits_per_image"]) * len(batch)
    return total / len(images)


def summarise(results: Results) -> dict[str, Any]:
    """The paper's order of the designs, by bits and by Frechet distance."""
    rows = [
        (
            DESIGNS.get(name, "raster, VQGAN f16"),
            results.interval(name, "parameters").text(0),
            results.interval(name, "bits").text(1),
            results.interval(name, "frechet").text(1),
            results.interval(name, "images_per_second").text(1),
            PAPER.get(name, "-"),
        )
        for name in (*DESIGNS, RASTER)
        if name in results.arms
    ]
    measured = ("parameters", "bits per image", f"Frechet distance ({LITE0})", "images per second")
    columns = ("prior", *measured, "the paper's FID on FFHQ")
    lines = [
        series(DESIGNS[name], results.curve(name, "validation", "bits_per_image"), STYLES[name]) for name in DESIGNS
    ]
    picture = chart("priors", "Bits of held-out images", lines, y_label="bits per image")
    notes = ["The bits of the first three are those of the same codes; the raster prior's are of other, fewer codes."]
    if not any(results.values(name, "frechet") for name in results.arms):
        notes.append(f"Frechet distances are left out: pip install {' '.join(LITE0_PACKAGES)} brings the network.")
    return summary(TITLE, _claims(results), [table("Equal layers and steps", columns, rows)], [picture], notes)


def _claims(results: Results) -> list[Claim]:
    def worse(a: str, b: str, by: str = "bits") -> Interval:
        return results.difference(a, b, by)

    claims = []
    for by, unit in (("bits", "bits"), ("frechet", "in Frechet distance")):
        if by == "frechet" and not results.values(OURS, "frechet"):
            continue
        best = {name: worse(name, OURS, by) for name in DESIGNS if name != OURS}
        said = ", ".join(f"{DESIGNS[name]} {gap.text(1, unit, sign=True)}" for name, gap in best.items())
        verdict = together([judge(gap) for gap in best.values()])
        claims.append(Claim(f"Coarse to fine is best, by {by}", f"beside it {said}", verdict))
        gap = worse("global-local", "raster-dynamic", by)
        measured = f"global-local {gap.text(1, unit, sign=True)} beside it"
        claims.append(Claim(f"Raster-dynamic is next, global-local worst, by {by}", measured, judge(gap)))
    if results.values(RASTER, "frechet"):
        gap = worse("raster-dynamic", RASTER, "frechet")
        measured = f"{gap.text(1, 'in Frechet distance', sign=True)}"
        claims.append(Claim("Raster-dynamic is worse than raster on fixed-length codes", measured, judge(gap)))
    return claims
