"""The demo's second half: a small DQ-Transformer on the codes of the tokenizer just trained."""

from __future__ import annotations

from pathlib import Path

from dqcore.data.photos import sample_folder
from dqcore.progress import plain_lines
from dqcore.training.prior.run import PriorRun, PriorTraining, train_prior

__all__ = ["SIZE", "train_demo_prior"]

#: Pixels of the crops that the prior learns, and of its samples.
SIZE = 64
STEPS = 250


def train_demo_prior(out: Path, seed: int, steps: int) -> PriorRun:
    """Train on the codes of crops of the sample photographs, and keep the run in the folder ``prior`` of the demo's.

    Args:
        out: Folder of the demo's run, which holds the tokenizer.
        seed: Decides the weights, the crops and their order.
        steps: Steps of the tokenizer's training; the prior takes as many, at most ``STEPS``.
    """
    steps = min(steps, STEPS)
    options = PriorTraining(
        data=sample_folder("train"),
        tokenizer=out,
        out=out / "prior",
        preset="dqtransformer-tiny",
        image_size=SIZE,
        resize=96,
        views=8,
        validation_share=0.03,
        steps=steps,
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
    return train_prior(options, progress=plain_lines(steps))
