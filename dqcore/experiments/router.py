"""Routers side by side: the paper's gate, the gain router, entropy and random; ratios of training and use crossed."""

from __future__ import annotations

from typing import Any

from dqcore.experiments.arms import Arm, dual
from dqcore.experiments.claims import Claim, Verdict, judge, judge_within, together
from dqcore.experiments.measure import load_arm, measure_tokenizer
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.summary import chart, series, summary, table
from dqcore.metrics.intervals import Interval

__all__ = ["arms", "measure", "summarise"]

TITLE = "Routers"
ROUTERS = {"feature": "first", "gain": "third", "entropy": "second", "random": "faint"}
#: Shares of fine regions that every arm is used at, and that the feature router is trained for.
RATIOS = (0.3, 0.5, 0.7)
#: dB that training for another ratio may cost.
ALIKE = 0.3


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """Each router trained for 0.5; the feature router also for 0.3 and 0.7."""
    found = []
    for seed in range(seeds):
        found += [dual(scale, seed, router) for router in ROUTERS]
        found += [dual(scale, seed, "feature", ratio) for ratio in RATIOS if ratio != 0.5]
    return found


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Photos at each ratio exactly."""
    model = load_arm(arm, setting)
    return {f"{ratio:g}": measure_tokenizer(arm, setting, ratio, model) for ratio in RATIOS}


def summarise(results: Results) -> dict[str, Any]:
    """Which router is ahead at equal codes, and what training for another ratio costs."""
    keys = [f"{ratio:g}" for ratio in RATIOS]
    rows = [
        (
            name,
            *(results.interval(name, key, "psnr").text(2) for key in keys),
            *(results.interval(name, key, "ssim").text(4) for key in keys),
            results.interval(name, "0.5", "rank_correlation").text(2),
        )
        for name in (*(f"{router}-r0.5" for router in ROUTERS), "feature-r0.3", "feature-r0.7")
        if name in results.arms
    ]
    columns = ("arm", *(f"PSNR at {k}" for k in keys), *(f"SSIM at {k}" for k in keys), "rank correlation at 0.5")
    lines = [
        series(router, _points(results, f"{router}-r0.5", keys), style, dots=True) for router, style in ROUTERS.items()
    ]
    picture = chart(
        "routers",
        "Routers trained for 0.5, used at other ratios",
        lines,
        x_label="bits per pixel, as written",
        y_label="PSNR, dB",
    )
    notes = ["The name of an arm says which ratio it was trained for; every photo is encoded at each ratio exactly."]
    return summary(TITLE, _claims(results), [table("Equal codes", columns, rows)], [picture], notes)


def _claims(results: Results) -> list[Claim]:
    claims = []
    for router, other, claim in (
        ("feature", "random", "The paper's feature router is ahead of random routing"),
        ("gain", "random", "The gain router is ahead of random routing"),
        ("gain", "entropy", "The gain router is ahead of entropy routing"),
        ("gain", "feature", "The gain router is ahead of the paper's feature router"),
    ):
        found = [results.difference(f"{router}-r0.5", f"{other}-r0.5", "0.5", name) for name in ("psnr", "ssim")]
        measured = f"at equal codes PSNR {found[0].text(2, 'dB', sign=True)}, SSIM {found[1].text(4, sign=True)}"
        claims.append(Claim(claim, measured, together([judge(gap) for gap in found])))
    costs = {key: results.difference(f"feature-r{key}", "feature-r0.5", key, "psnr") for key in ("0.3", "0.7")}
    said = ", ".join(f"{cost.text(2, 'dB', sign=True)} at {key}" for key, cost in costs.items())
    claim = f"A ratio can be chosen after training: being trained for it is worth less than {ALIKE} dB"
    claims.append(Claim(claim, f"PSNR {said}", together([_cheap(cost) for cost in costs.values()])))
    return claims


def _cheap(cost: Interval) -> Verdict:
    return judge_within(cost, -100.0, ALIKE)


def _points(results: Results, name: str, keys: list[str]) -> list[tuple[float, float]]:
    if name not in results.arms:
        return []
    pairs = [[results.interval(name, key, what).mean for what in ("bits_per_pixel", "psnr")] for key in keys]
    return [(x, y) for x, y in pairs]
