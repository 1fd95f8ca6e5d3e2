"""How soon a router learns to follow detail: its map and its distortion after each part of a training run.

Of the paper: section 3.2, whose gate is trained by the straight-through estimator; with a discriminator and without.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dqcore.data.listing import spread
from dqcore.experiments.arms import Arm, dual, fixed
from dqcore.experiments.claims import Claim, judge, together
from dqcore.experiments.maps import correlate
from dqcore.experiments.measure import curve, load_arm, metrics_of
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.summary import chart, series, summary, table
from dqcore.inference.load import load_tokenizer
from dqcore.inference.measure import evaluate_tokenizer
from dqcore.inference.photos import PhotoBatches

__all__ = ["arms", "measure", "summarise"]

TITLE = "How routers learn"
STYLES = {"feature": "first", "gain": "third", "entropy": "second", "random": "faint"}
#: Routers that are trained against a discriminator too.
ADVERSARIAL = ("feature", "gain", "entropy")
#: Photos that each kept model is measured on.
PHOTOS = 8
RATIO = 0.5
QUANTITIES = {
    "errors": "Rank correlation of scores with a VQGAN's errors",
    "entropy": "Rank correlation of the grain map with local entropy",
    "psnr": "PSNR at equal codes",
}


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """Each router at ratio 0.5, the learned ones and entropy with a discriminator too; a VQGAN beside each seed."""
    found = []
    for seed in range(seeds):
        chosen = [dual(scale, seed, router) for router in STYLES]
        chosen += [dual(scale, seed, router, adversarial=True) for router in ADVERSARIAL]
        found += [replace(arm, needs=(fixed(scale, seed, 16),)) for arm in chosen]
    return found


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Curves over the steps, of each model that was kept: :data:`QUANTITIES`, all at equal codes; the ratio's curve."""
    twin = load_arm(arm.needs[-1], setting)
    found: dict[str, Any] = {name: [] for name in QUANTITIES}
    for step, folder in _kept(arm, setting):
        for name, value in _point(folder, twin, setting).items():
            found[name].append([step, value])
    found["fine_ratio"] = curve(metrics_of(arm, setting), "fine_ratio")
    first = {name: found[name][0][1] for name in QUANTITIES}
    return found | {"first": first, "last": {name: points[-1][1] for name, points in found.items()}}


def _kept(arm: Arm, setting: Setting) -> list[tuple[int, Path]]:
    """Steps and folders of the models that the arm's training kept; of a run too short to keep any, its last model."""
    run = setting.run_folder(arm)
    kept = [(int(folder.name), folder) for folder in sorted((run / "kept").glob("[0-9]*"))]
    return kept or [(int(metrics_of(arm, setting)[-1]["step"]), run)]


def _point(folder: Path, twin: Any, setting: Setting) -> dict[str, float]:
    """What a kept model is worth; a map without a rank, as at the very start, correlates with nothing."""
    model = load_tokenizer(folder, setting.scale.device)
    photos = spread(setting.photos.test, PHOTOS)
    found = evaluate_tokenizer(model, PhotoBatches(photos), ratio=RATIO)
    errors = correlate(model, twin, photos)["scores"]["all regions"]
    return {"errors": errors or 0.0, "entropy": found.rank_correlation or 0.0, "psnr": found.psnr}


def summarise(results: Results) -> dict[str, Any]:
    """Claims, what each arm ends at, and the curves."""
    rows = [
        (
            _title(name),
            *(results.interval(name, "last", quantity).text(2) for quantity in QUANTITIES),
            results.interval(name, "first", "errors").text(2),
            results.interval(name, "last", "fine_ratio").text(3),
        )
        for name in results.arms
    ]
    step = _first_step(results)
    columns = (
        "router",
        "with a VQGAN's errors",
        "with local entropy",
        "PSNR",
        f"with errors after {step}",
        "fine ratio",
    )
    notes = [f"On {PHOTOS} of the test photos at a ratio of {RATIO} exactly; the fine ratio is that of training."]
    return summary(TITLE, _claims(results), [table("At the end of training", columns, rows)], _charts(results), notes)


def _first_step(results: Results) -> str:
    steps = [points[0][0] for name in results.arms if (points := results.curve(name, "errors"))]
    return f"{min(steps):g} steps" if steps else "the first steps"


def _title(name: str) -> str:
    return name.split("-")[0] + (", discriminator" if name.endswith("adversarial") else "")


def _claims(results: Results) -> list[Claim]:
    claims = []
    for end, where in (("", ""), ("-adversarial", ", with a discriminator")):
        feature, gain, entropy = (f"{router}-r0.5{end}" for router in ADVERSARIAL)
        early = results.difference(gain, feature, "first", "errors")
        late = results.difference(gain, feature, "last", "errors")
        said = f"rank correlation with a VQGAN's errors {early.text(2, sign=True)} after {_first_step(results)}"
        claim = f"The gain router learns earlier and follows errors better than the paper's gate{where}"
        measured = f"{said}, {late.text(2, sign=True)} at the end"
        claims.append(Claim(claim, measured, together([judge(early), judge(late)])))
        for other, called in ((feature, "the paper's gate"), (entropy, "entropy routing")):
            gap = results.difference(gain, other, "last", "psnr")
            claim = f"At equal codes the gain router reconstructs better than {called}{where}"
            claims.append(Claim(claim, f"PSNR {gap.text(2, 'dB', sign=True)}", judge(gap)))
    return claims


def _charts(results: Results) -> list[dict[str, Any]]:
    found = []
    for end, part, where in (("", "alone", ""), ("-adversarial", "adversarial", ", with a discriminator")):
        for quantity, title in {**QUANTITIES, "fine_ratio": "Share of fine regions in training"}.items():
            unit = {"psnr": "PSNR, dB", "fine_ratio": "share"}.get(quantity, "rank correlation")
            lines = [
                series(router, results.curve(f"{router}-r0.5{end}", quantity), style)
                for router, style in STYLES.items()
                if f"{router}-r0.5{end}" in results.arms
            ]
            target = RATIO if quantity == "fine_ratio" else None
            name = f"learning-{quantity.replace('_', '-')}-{part}"
            found.append(chart(name, f"{title}{where}", lines, y_label=unit, target=target))
    return found
