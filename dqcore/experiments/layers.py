"""Layers for contents and layers for positions: which matter more, and how the two losses go.

Of the paper: table 2 and section 3.3 of the supplement.
"""

from __future__ import annotations

import itertools
from typing import Any

from dqcore.experiments.arms import Arm, dual, prior
from dqcore.experiments.claims import Claim, judge, together
from dqcore.experiments.priors import measure_prior
from dqcore.experiments.results import Results
from dqcore.experiments.scales import Scale
from dqcore.experiments.setting import Setting
from dqcore.experiments.summary import chart, series, summary, table
from dqcore.metrics.intervals import interval

__all__ = ["arms", "measure", "summarise"]

TITLE = "Layers for contents and positions"
#: Nats that a position loss is near zero below; share that a validation loss may rise by after its lowest.
NEAR_ZERO, RISE = 0.1, 0.01
#: The paper's FID on FFHQ by the share of content layers, of 24 in all (supplement, table 2). The heads of its columns
#: are swapped: its text says that content layers matter more, and section 1 that the base model has 18 of them.
PAPER = {0.75: "4.91", 0.5: "5.32", 0.25: "6.08"}
STYLES = ("first", "second", "third")


def arms(scale: Scale, seeds: int) -> list[Arm]:
    """The paper's 6 and 18, 12 and 12, 18 and 6 layers, scaled down."""
    return [
        prior(scale, "dqtransformer", dual(scale, seed, "feature"), position_layers=position, content_layers=content)
        for seed in range(seeds)
        for position, content in scale.layers
    ]


def measure(arm: Arm, setting: Setting) -> dict[str, Any]:
    """Bits of unseen photos' codes, and the losses in training and validation: their curves, and how they ended."""
    found, _, _ = measure_prior(arm, setting)
    losses = [value for _, value in found["validation"]["loss"]]
    positions = found["training"]["position_loss"]
    recent = [value for _, value in positions[-max(1, len(positions) // 10) :]]
    found["position_loss"] = sum(recent) / len(recent)
    found["rise"] = losses[-1] / min(losses) - 1 if losses else None
    return found


def summarise(results: Results) -> dict[str, Any]:
    """What the layers are worth, and where the losses end."""
    names = _by_content(results)
    rows = [
        (
            *name.split("-")[1:],
            results.interval(name, "bits").text(1),
            results.interval(name, "position_loss").text(3),
            _share(results, name),
            PAPER.get(_content_share(name), "-"),
        )
        for name in names
    ]
    measured = ("bits per image", "position loss, training", "rise of validation")
    columns = ("position layers", "content layers", *measured, "the paper's FID on FFHQ")
    pictures = [
        chart(
            f"layers-{kind}-{part}",
            f"{kind.capitalize()} loss, {part}",
            [
                series(" and ".join(name.split("-")[1:]), results.curve(name, part, f"{kind}_loss"), style)
                for name, style in zip(names, STYLES, strict=False)
            ],
            y_label="nats",
        )
        for kind in ("content", "position")
        for part in ("training", "validation")
    ]
    notes = [
        "Rise: of the validation loss at the end over its lowest, in per cent. Names: position and content layers.",
        "The paper's are of 18, 12 and 6 content layers, of 24 in all.",
    ]
    return summary(TITLE, _claims(results), [table("Layers", columns, rows)], pictures, notes)


def _claims(results: Results) -> list[Claim]:
    names = _by_content(results)
    gaps = {
        f"{fewer.partition('-')[2]} against {more.partition('-')[2]}": results.difference(fewer, more, "bits")
        for more, fewer in itertools.pairwise(names)
    }
    said = ", ".join(f"{gap.text(1, 'bits', sign=True)} ({pair})" for pair, gap in gaps.items()) or "not measured"
    best = names[0] if names else ""
    positions = results.interval(best, "position_loss")
    down = interval([-value for value in results.values(best, "position_loss").values()])
    flat = interval([-value for value in results.values(best, "rise").values()])
    return [
        Claim("Content layers matter more than position layers", said, together([judge(gap) for gap in gaps.values()])),
        Claim(
            "The position loss nears zero",
            f"{positions.text(3, 'nats')} at the end of training (near zero: below {NEAR_ZERO})",
            judge(down, -NEAR_ZERO),
        ),
        Claim(
            "No overfitting",
            f"the validation loss ends {_share(results, best)} % above its lowest (overfitting: {RISE:.0%})",
            judge(flat, -RISE),
        ),
    ]


def _share(results: Results, name: str) -> str:
    return interval([100 * value for value in results.values(name, "rise").values()]).text(1)


def _content_share(name: str) -> float:
    _, position, content = name.split("-")
    return int(content) / (int(position) + int(content))


def _by_content(results: Results) -> list[str]:
    """Names of the arms, most content layers first."""
    return sorted(results.arms, key=lambda name: -int(name.rpartition("-")[2]))
