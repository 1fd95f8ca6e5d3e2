"""The budget loss: whether the share of fine regions meets its target, how soon, and what its weight does.

Of the paper: table 1 and figure 1 of the supplement.
"""

from __future__ import annotations

from typing import Any

from dqcore.experiments.arms import Arm, dual
from dqcore.experiments.claims import Claim, judge, judge_within, together
from dqcore.experiments.measure import curve, last_tenth, load_arm, measure_tokenizer, metrics_of
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.summary import chart, series, summary, table
from dqcore.metrics.intervals import interval

__all__ = ["arms", "measure", "settled", "summarise"]

TITLE = "The budget loss and its weight"
TARGET, TOLERANCE = 0.5, 0.02
#: Weight of the budget loss, and the arm that has it; 10 is what the other experiments have.
NAMES = {1: "feature-r0.5-lambda1", 10: "feature-r0.5", 100: "feature-r0.5-lambda100"}
#: Their reconstruction FID on FFHQ after 50 epochs (supplement, table 1).
PAPER = {1: "3.6288", 10: "3.5311", 100: "3.7932"}
#: A share of fine regions has settled once it stays this near its target, and quickly if by this share of the run.
NEAR, QUICKLY = 0.05, 0.25
#: dB that weights may differ by and still be alike: the paper's distances differ by 7 %.
ALIKE = 0.3


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """The feature router with weights 1, 10 and 100."""
    weights = (1, None, 100)
    return [dual(scale, seed, "feature", TARGET, weight) for weight in weights for seed in range(seeds)]


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Curves of share and budget loss, in training and validation, and distortion at the router's choice and at 0.5."""
    rows, model = metrics_of(arm, setting), load_arm(arm, setting)
    weight = model.config.budget_weight
    fine = curve(rows, "fine_ratio")
    held_out = curve(rows, "val_fine_ratio")
    return {
        "training": {
            "fine_ratio": fine,
            "budget_loss": [[step, loss / weight] for step, loss in curve(rows, "budget_loss")],
        },
        "validation": {
            "fine_ratio": held_out,
            "budget_loss": [[step, (share - TARGET) ** 2] for step, share in held_out],
        },
        "fine_ratio": last_tenth(rows, "fine_ratio"),
        "settled": settled(fine),
        "free": measure_tokenizer(arm, setting, model=model),
        "equal": measure_tokenizer(arm, setting, TARGET, model),
    }


def settled(curve: list[list[float]], window: int = 5) -> float:
    """Share of the run after which the running mean of a curve stays near the target; 1 if it never does."""
    last = 0.0
    for index, (step, _) in enumerate(curve):
        recent = [value for _, value in curve[max(0, index + 1 - window) : index + 1]]
        if abs(sum(recent) / len(recent) - TARGET) > NEAR:
            last = step
    return last / curve[-1][0]


def summarise(results: Results) -> dict[str, Any]:
    """Claims, table and curves."""
    rows = [
        (
            str(weight),
            results.interval(name, "fine_ratio").text(3),
            results.interval(name, "free", "codes_per_image").text(0),
            results.interval(name, "settled").text(2),
            results.interval(name, "equal", "psnr").text(2, "dB"),
            results.interval(name, "equal", "ssim").text(4),
            PAPER[weight],
        )
        for weight, name in NAMES.items()
    ]
    measured = ("fine ratio", "codes, router's choice", "settled after", "PSNR at 0.5", "SSIM at 0.5")
    columns = ("weight", *measured, "the paper's rFID on FFHQ")
    notes = ["Settled: the share of the run after which the running mean of the fine ratio stays within 0.05 of 0.5."]
    return summary(
        TITLE, _claims(results), [table("Weight of the budget loss", columns, rows)], _charts(results), notes
    )


def _claims(results: Results) -> list[Claim]:
    ten = NAMES[10]
    met, soon = results.interval(ten, "fine_ratio"), results.interval(ten, "settled")
    gaps = {weight: results.difference(ten, NAMES[weight], "equal", "psnr") for weight in NAMES if weight != 10}
    between = results.difference(NAMES[100], NAMES[1], "equal", "psnr")
    said = ", ".join(f"{gap.text(2, 'dB', sign=True)} against {weight}" for weight, gap in gaps.items())
    return [
        Claim(
            "The share of fine regions meets its target of 0.5 with weight 10, within 0.02",
            f"{met.text(3)} at the end of training",
            judge_within(met, TARGET - TOLERANCE, TARGET + TOLERANCE),
        ),
        Claim(
            "It converges quickly",
            f"settled within {NEAR} after {soon.text(2)} of the run (quickly: {QUICKLY})",
            judge(interval([-value for value in results.values(ten, "settled").values()]), -QUICKLY),
        ),
        Claim(
            f"Reconstruction is robust to the weight (alike: {ALIKE} dB)",
            f"PSNR of 10 at equal codes is {said}; 100 against 1 {between.text(2, 'dB', sign=True)}",
            together([judge_within(gap, -ALIKE, ALIKE) for gap in (*gaps.values(), between)]),
        ),
        Claim("Weight 10 is best", f"PSNR at equal codes {said}", together([judge(gap) for gap in gaps.values()])),
    ]


def _charts(results: Results) -> list[dict[str, Any]]:
    found = []
    for quantity, title, unit, target, log in (
        ("fine_ratio", "Share of fine regions", "share", TARGET, False),
        ("budget_loss", "Budget loss before its weight", "loss", None, True),
    ):
        for part in ("training", "validation"):
            lines = [
                series(f"weight {weight}", results.curve(name, part, quantity), style)
                for (weight, name), style in zip(NAMES.items(), ("second", "first", "third"), strict=True)
            ]
            name = f"budget-{quantity.replace('_', '-')}-{part}"
            found.append(chart(name, f"{title}, {part}", lines, y_label=unit, target=target, log=log))
    return found
