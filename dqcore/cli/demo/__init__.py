"""``dqcore demo``: train on the photographs that come with the package, and write a report."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo"]


def demo(*, steps: int | None = None, out: Path = Path("runs/demo"), seed: int = 0, prior: bool = True) -> None:
    """Train a small tokenizer and a prior on the photographs that ship with dqcore, and write a report.

    Needs neither a GPU nor a network; takes less than five minutes on two cores.

    Args:
        steps: The tokenizer's optimiser steps; by default as many as the page's numbers need.
        out: Folder of the run; a demo that lies there already is replaced.
        seed: Of weights, crops and order.
        prior: Go on to a small prior, whose samples and completions the report shows; without it three minutes do.
    """
    from dqcore.cli.demo.run import run_demo

    run_demo(out=out, seed=seed, steps=steps, prior=prior)
