"""What experiments measure of a trained tokenizer: photos at native size, and the curves of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dqcore.experiments.arms import Arm
from dqcore.experiments.setting import Setting
from dqcore.inference.load import load_tokenizer
from dqcore.inference.measure import evaluate_tokenizer
from dqcore.inference.photos import PhotoBatches
from dqcore.inference.rate import StreamCost
from dqcore.training.log import Row, read_metrics

__all__ = ["FIELDS", "curve", "last_tenth", "load_arm", "measure_tokenizer", "metrics_of"]

#: What is kept of an :class:`~dqcore.inference.measure.Evaluation`.
FIELDS = ("num_images", "psnr", "ssim", "codes_per_image", "bits_per_pixel", "usage", "perplexity", "rank_correlation")


def load_arm(arm: Arm, setting: Setting) -> Any:
    """The arm's trained tokenizer, in evaluation mode, on the scale's device."""
    return load_tokenizer(setting.run_folder(arm), setting.scale.device)


def measure_tokenizer(
    arm: Arm, setting: Setting, ratio: float | Sequence[float] | None = None, model: Any = None
) -> dict[str, Any]:
    """Measure an arm on the test photos: native size, 8 bits, bytes as written.

    Args:
        arm: A trained tokenizer.
        setting: The photos, and where it lies.
        ratio: Share of fine regions in every photo, so that all arms take equal numbers of codes; None leaves it to
            the router.
        model: The tokenizer, if it is loaded already.

    Returns:
        :data:`FIELDS`, and ``ratios``, the share of regions at each granularity.
    """
    model = load_arm(arm, setting) if model is None else model
    cost = StreamCost.of_checkpoint(setting.run_folder(arm), model.config)
    found = evaluate_tokenizer(model, PhotoBatches(setting.photos.test), ratio=ratio, cost=cost)
    return {name: getattr(found, name) for name in FIELDS} | {"ratios": list(found.ratios)}


def metrics_of(arm: Arm, setting: Setting) -> list[Row]:
    """The rows that the arm's training logged."""
    return read_metrics(setting.run_folder(arm) / "metrics.jsonl")


def curve(rows: Sequence[Row], name: str) -> list[list[float]]:
    """Steps and values of a quantity, ``[[step, value], ..]``."""
    return [[row["step"], row[name]] for row in rows if name in row]


def last_tenth(rows: Sequence[Row], name: str) -> float:
    """Mean of a quantity over the last tenth of its rows."""
    values = [value for _, value in curve(rows, name)]
    recent = values[-max(1, len(values) // 10) :]
    return sum(recent) / len(recent)
