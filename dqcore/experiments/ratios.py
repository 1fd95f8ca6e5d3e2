"""Ratios: codes go where detail is at every target, and rate and distortion beside fixed lengths and random routing.

Of the paper: figures 4 and 5 of the supplement, and the comparisons of the main paper.
"""

from __future__ import annotations

import math
from typing import Any

from dqcore.experiments.arms import Arm, dual, fixed, triple
from dqcore.experiments.claims import Claim, judge, judge_within, together
from dqcore.experiments.measure import last_tenth, load_arm, measure_tokenizer, metrics_of
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.statistics import difference
from dqcore.experiments.summary import chart, series, summary, table
from dqcore.metrics.intervals import Interval

__all__ = ["arms", "at_codes", "measure", "summarise"]

TITLE = "Ratios, and rate and distortion"
#: Shares of strides 16 and 8: those of the released configuration, and those whose mean is VQGAN's 256 codes an image.
TRIPLES = ((0.3, 0.3), (0.625, 0.075))
TOLERANCE = 0.02
COARSE, FINE, HALF = "vqgan-f16", "vqgan-f8", "feature-r0.5"


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """Dual and triple DQ-VAE, random routing, VQGAN with strides 16 and 8."""
    found = []
    for seed in range(seeds):
        found += [dual(scale, seed, "feature", ratio) for ratio in scale.ratios]
        found += [dual(scale, seed, "random", ratio) for ratio in scale.random_ratios]
        found += [triple(scale, seed, ratio) for ratio in TRIPLES]
        found += [fixed(scale, seed, stride) for stride in (16, 8)]
    return found


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Photos at the target ratio exactly, so that codes are equal; and the ratio that training ended with."""
    model = load_arm(arm, setting)
    target = getattr(model.config, "target_ratio", None)
    if target is None:
        return {"equal": measure_tokenizer(arm, setting, model=model)}
    rows, ratio = metrics_of(arm, setting), target if len(target) > 1 else target[0]
    return {
        "target": list(target),
        "fine_ratio": last_tenth(rows, "fine_ratio"),
        "off_target": last_tenth(rows, "fine_ratio") - target[-1],
        "equal": measure_tokenizer(arm, setting, ratio, model),
    }


def at_codes(results: Results, codes: float, quantity: str) -> dict[int, float]:
    """A fixed-length tokenizer's quantity at a number of codes, by seed.

    No stride gives that number, so the quantity is interpolated over the logarithm of the codes between stride 16
    and stride 8.
    """
    low, high = (results.values(name, "equal", quantity) for name in (COARSE, FINE))
    fewer, more = (results.interval(name, "equal", "codes_per_image").mean for name in (COARSE, FINE))
    if not fewer <= codes <= more:
        return {}
    share = math.log(codes / fewer) / math.log(more / fewer)
    return {seed: low[seed] + share * (high[seed] - low[seed]) for seed in low.keys() & high.keys()}


def summarise(results: Results) -> dict[str, Any]:
    """Claims, the table of all arms, and the curve of rate and distortion."""
    rows = [
        (
            name,
            results.interval(name, "fine_ratio").text(3),
            results.interval(name, "equal", "codes_per_image").text(0),
            results.interval(name, "equal", "bits_per_pixel").text(4),
            results.interval(name, "equal", "psnr").text(2),
            results.interval(name, "equal", "ssim").text(4),
            results.interval(name, "equal", "rank_correlation").text(2),
        )
        for name in (*_dual(results, "feature"), *_triple(results), *_dual(results, "random"), COARSE, FINE)
        if name in results.arms
    ]
    columns = ("arm", "fine ratio in training", "codes", "bits per pixel", "PSNR, dB", "SSIM", "rank correlation")
    notes = [
        "Every photo is encoded at the target ratio exactly; bits per pixel are the bytes of the stream as written.",
        "Rank correlation: of the grain map with the entropy of the regions' grey values.",
        "Fixed lengths at equal codes: between strides 16 and 8, interpolated over the logarithm of the codes.",
    ]
    return summary(TITLE, _claims(results), [table("All arms", columns, rows)], [_rate_chart(results)], notes)


def _claims(results: Results) -> list[Claim]:
    ours, both = _dual(results, "feature"), _dual(results, "random")
    follows = {name: results.interval(name, "equal", "rank_correlation") for name in (*ours, *_triple(results))}
    met = {name: results.interval(name, "off_target") for name in ours}
    ahead = {name: _ahead(results, name) for name in ours}
    against = {
        name: results.difference(name, f"random-{name.partition('-')[2]}", "equal", "psnr")
        for name in ours
        if f"random-{name.partition('-')[2]}" in both
    }
    pairs = {quantity: results.difference(HALF, COARSE, "equal", quantity) for quantity in ("psnr", "ssim")}
    return [
        Claim(
            "More codes where detail is, at every ratio",
            f"rank correlation with local entropy {_each(follows)}",
            together([judge(found) for found in follows.values()]),
        ),
        Claim(
            "The fine ratio is within 0.02 of its target after training, at every ratio",
            f"off by {_each(met, 3)}",
            together([judge_within(found, -TOLERANCE, TOLERANCE) for found in met.values()]),
        ),
        Claim(
            "Better than a fixed length at equal codes, at every ratio",
            f"PSNR {_each(ahead)} dB",
            together([judge(found) for found in ahead.values()]),
        ),
        Claim(
            "Better than random routing at equal codes, at every ratio",
            f"PSNR {_each(against)} dB",
            together([judge(found) for found in against.values()]),
        ),
        Claim(
            "Ratio 0.5 is ahead of VQGAN f16 at equal training (and 2.5 times its codes)",
            f"PSNR {pairs['psnr'].text(2, 'dB', sign=True)}, SSIM {pairs['ssim'].text(4, sign=True)}",
            together([judge(found) for found in pairs.values()]),
        ),
    ]


def _ahead(results: Results, name: str) -> Interval:
    codes = results.interval(name, "equal", "codes_per_image").mean
    return difference(results.values(name, "equal", "psnr"), at_codes(results, codes, "psnr"))


def _each(found: dict[str, Interval], digits: int = 2) -> str:
    texts = [f"{value.text(digits, sign=True)} ({name.partition('-')[2]})" for name, value in found.items()]
    return ", ".join(texts) or "not measured"


def _dual(results: Results, router: str) -> list[str]:
    """Names of a router's arms, by their ratio."""
    names = [name for name in results.arms if name.startswith(f"{router}-r")]
    return sorted(names, key=lambda name: float(name.partition("-r")[2]))


def _triple(results: Results) -> list[str]:
    return sorted((name for name in results.arms if name.startswith("triple-")), reverse=True)


def _rate_chart(results: Results) -> dict[str, Any]:
    lines = [
        series("DQ-VAE", _points(results, _dual(results, "feature")), "first", dots=True),
        series("triple", _points(results, _triple(results)), "faint", dots=True),
        series("random routing", _points(results, _dual(results, "random")), "second", dots=True),
        series("VQGAN f16, f8", _points(results, [COARSE, FINE]), "third", dots=True),
    ]
    return chart(
        "rate-distortion",
        "Rate and distortion, each point trained for its ratio",
        lines,
        x_label="bits per pixel, as written",
        y_label="PSNR, dB",
    )


def _points(results: Results, names: list[str]) -> list[tuple[float, float]]:
    found = [name for name in names if name in results.arms]
    return [
        (results.interval(name, "equal", "bits_per_pixel").mean, results.interval(name, "equal", "psnr").mean)
        for name in found
    ]
