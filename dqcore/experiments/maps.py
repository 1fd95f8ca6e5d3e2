"""Grain maps beside the error map of a VQGAN that was trained beside them, router by router.

Of the paper: figures 2 and 3 of the supplement. ``dqcore report RUN --twin VQGAN`` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.data.images import pad_to_stride
from dqcore.experiments.arms import Arm, dual, fixed
from dqcore.experiments.claims import Claim, judge
from dqcore.experiments.measure import load_arm
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.summary import summary, table
from dqcore.inference.photos import PhotoBatches
from dqcore.metrics.rank import spearman
from dqcore.nn.allocation import exact_share

__all__ = ["arms", "correlate", "error_map", "measure", "summarise"]

TITLE = "Grain maps and a VQGAN's errors"
ROUTERS = ("feature", "gain", "entropy", "random")
#: Rank correlation from which on a map is said to match.
MATCH = 0.5


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """Each router at ratio 0.5, with a VQGAN of stride 16 of the same seed beside it."""
    found = []
    for seed in range(seeds):
        twin = fixed(scale, seed, 16)
        for router in ROUTERS:
            found.append(replace(dual(scale, seed, router), needs=(twin,)))
    return found


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Rank correlations of scores and grain map with the error map, see :func:`correlate`."""
    return correlate(load_arm(arm, setting), load_arm(arm.needs[-1], setting), setting.photos.test)


def correlate(model: Any, twin: Any, photos: Sequence[Path]) -> dict[str, Any]:
    """Rank correlations with the twin's error map, of the router's ``scores`` and of its ``grain`` map.

    Args:
        model: A DQ-VAE with two granularities.
        twin: A tokenizer whose coarsest stride is the DQ-VAE's.
        photos: The photos.

    Returns:
        Each over ``"all regions"`` of the photos together, and as the ``"mean of photos"``; None where it is undefined.
    """
    triples = [_maps(model, twin, images) for images in PhotoBatches(photos, batch_size=1)]
    names, columns = ("scores", "grain"), list(zip(*triples, strict=True))
    found: dict[str, Any] = {}
    for name, values in zip(names, columns, strict=False):
        each = [spearman(a, b) for a, b in zip(values, columns[-1], strict=True) if a.numel() > 1]
        finite = [value for value in each if math.isfinite(value)]
        one, other = (torch.cat([v.flatten() for v in of_all]) for of_all in (values, columns[-1]))
        pooled = spearman(one, other) if len(one) > 1 else math.nan
        found[name] = {
            "all regions": pooled if math.isfinite(pooled) else None,
            "mean of photos": sum(finite) / len(finite) if finite else None,
        }
    return found


def error_map(model: Any, images: Tensor) -> Tensor:
    """Squared error of a tokenizer's reconstruction in each of its coarsest cells, ``(B, h, w)``."""
    with torch.no_grad():
        error = (model(images).reconstruction.float() - images).square().mean(1, keepdim=True)
    return F.avg_pool2d(error, model.config.strides[0])[:, 0]


def summarise(results: Results) -> dict[str, Any]:
    """One claim for each router, and their table."""
    kinds = [(name, how) for name in ("scores", "grain") for how in ("all regions", "mean of photos")]
    rows = [
        (router, *(results.interval(f"{router}-r0.5", *kind).text(2) for kind in kinds))
        for router in ROUTERS
        if f"{router}-r0.5" in results.arms
    ]
    columns = ("router", *(f"{'grain map' if name == 'grain' else name}, {how}" for name, how in kinds))
    notes = [
        "Spearman's rank correlation with the squared error of a VQGAN f16 of the same seed and training.",
        "Both maps are drawn by `dqcore report runs/reproduce/runs/feature-r0.5-seed0 "
        "--twin runs/reproduce/runs/vqgan-f16-seed0`.",
    ]
    return summary(TITLE, _claims(results), [table("Rank correlation", columns, rows)], notes=notes)


def _claims(results: Results) -> list[Claim]:
    claims = []
    for router, what in (("feature", "The paper's feature router"), ("gain", "The gain router")):
        name = f"{router}-r0.5"
        found, ahead = (
            results.interval(name, "grain", "all regions"),
            results.difference(name, "entropy-r0.5", "grain", "all regions"),
        )
        measured = f"rank correlation {found.text(2)}, against the entropy router {ahead.text(2, sign=True)}"
        claim = f"{what} matches the error map of a VQGAN, rank correlation above {MATCH}"
        claims.append(Claim(claim, measured, judge(found, MATCH)))
    return claims


@torch.no_grad()
def _maps(model: Any, twin: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Router's scores, its grain map at ratio 0.5 exactly, and the twin's errors, each of the regions of one photo."""
    padded = pad_to_stride(images.to(model.quantizer.codebook.weight.device), model.config.strides[0])
    _, routing = model.scan(padded)
    scores = model.router.refinement_scores(routing)
    return scores[:, 0].cpu(), exact_share(scores, (0.5,)).cpu(), error_map(twin, padded).cpu()
