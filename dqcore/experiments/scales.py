"""How large the networks are and how long they train: on two CPU cores, or on one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SCALES", "Scale"]


@dataclass(frozen=True)
class Scale:
    """Networks, steps and photos of every experiment.

    Attributes:
        name: What the command line calls it.
        device: Where the networks run, see :func:`dqcore.backends.choose_device`.
        preset: The DQ-VAE with two granularities; the others are made from it.
        tokenizer: Options of every tokenizer's training.
        prior: Options of every prior's training.
        size: Which presets of the priors: ``"tiny"`` or ``"small"``.
        layers: Position and content layers of the arms of ``layers``.
        ratios: Target shares of fine regions of the arms of ``ratios``.
        random_ratios: Those at which random routing is trained too.
        validation_photos: Photos of the validation curves, at most.
        test_photos: Photos that everything is measured on, at most.
        samples: Images drawn from each prior.
        seconds: What an arm is expected to take, for the plan: ``tokenizer`` and ``prior`` in training, ``measure``
            afterwards.
        keep_every: Steps between the models that are kept of the arms of ``learning``.
        adversarial: Changes of the options of a tokenizer's training with a discriminator.
        model: Changes of every tokenizer's config; fields that all tokenizers have.
    """

    name: str
    device: str
    preset: str
    tokenizer: Mapping[str, Any]
    prior: Mapping[str, Any]
    size: str
    layers: tuple[tuple[int, int], ...]
    ratios: tuple[float, ...]
    random_ratios: tuple[float, ...]
    validation_photos: int
    test_photos: int
    samples: int
    seconds: Mapping[str, float]
    keep_every: int
    adversarial: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)


_CPU = Scale(
    name="cpu",
    device="cpu",
    preset="dqvae-small",
    tokenizer={"recipe": "small", "steps": 500, "log_every": 10, "validate_every": 50, "checkpoint_minutes": 1.0},
    prior={"recipe": "small", "image_size": 96, "resize": 144, "views": 4, "steps": 400, "validation_share": 0.1}
    | {"log_every": 10, "validate_every": 50, "checkpoint_minutes": 1.0},
    size="tiny",
    layers=((2, 6), (4, 4), (6, 2)),
    ratios=(0.1, 0.3, 0.5, 0.7, 0.9),
    random_ratios=(0.1, 0.5, 0.9),
    validation_photos=4,
    test_photos=24,
    samples=64,
    seconds={"tokenizer": 80, "prior": 90, "measure": 28},
    keep_every=100,
    adversarial={"recipe": "small-adversarial", "discriminator_dim": 32},
)
#: Not measured on a GPU yet: steps are chosen so that a run should take about five minutes on an H100.
_GPU = Scale(
    name="gpu",
    device="cuda",
    preset="dqvae-dual-small",
    tokenizer={"recipe": "photos", "steps": 4000, "validate_every": 400, "log_every": 20, "checkpoint_minutes": 1.0},
    prior={"recipe": "photos", "views": 16, "steps": 3000, "validation_share": 0.1, "encode_batch": 64}
    | {"log_every": 20, "validate_every": 200, "checkpoint_minutes": 1.0},
    size="small",
    layers=((3, 9), (6, 6), (9, 3)),
    ratios=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    random_ratios=(0.1, 0.3, 0.5, 0.7, 0.9),
    validation_photos=24,
    test_photos=500,
    samples=1000,
    seconds={"tokenizer": 300, "prior": 300, "measure": 30},
    keep_every=800,
    adversarial={"recipe": "small-adversarial", "batch_size": 48, "image_size": 256, "resize": 768}
    | {"warmup_steps": 300, "average_decay": 0.999},
)

SCALES = {scale.name: scale for scale in (_CPU, _GPU)}
