"""The model card of a run: its data, how it was trained, and its last numbers on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqcore.models.card import write_card
from dqcore.models.pretrained import Pretrained
from dqcore.progress import counted
from dqcore.training.log import Row
from dqcore.training.record import RunRecord

__all__ = ["write_run_card"]

_NAMES = {
    "val_psnr": "PSNR of held-out images, dB",
    "val_reconstruction_loss": "L1 of held-out images, values in [-1, 1]",
    "val_perceptual_loss": "LPIPS of held-out images",
    "val_fine_ratio": "share of their regions at the finest granularity",
    "val_usage": "share of the codes that occur in them",
    "val_bits_per_image": "bits per held-out image",
}
_PROTOCOLS = {
    "data": "images at their native size, padded to the coarsest stride, reconstructions cropped back and rounded to "
    "8 bits, the mean over images",
    "codes": "cross-entropy of the codes of held-out images, the mean over images",
}


def write_run_card(model: Any, record: RunRecord, rows: Sequence[Row]) -> None:
    """Write the card into the folder ``model`` of a run; a model of another kind gets none.

    Args:
        model: The weights to use.
        record: What was run.
        rows: Its metrics.
    """
    if isinstance(model, Pretrained):
        write_card(model, Path(record.options.out) / "model", about_run(record, rows))


def about_run(record: RunRecord, rows: Sequence[Row]) -> dict[str, Any]:
    """What :func:`dqcore.models.card.card_text` takes."""
    options, data = record.options.as_json(), record.data
    if record.data_name == "data":
        images = f"{counted(data['training'], 'image')} to train on, {data['validation']:,} held out"
    else:
        images = f"the codes of {counted(data['images'], 'image')}, {data['held_out']:,} of them held out"
    folder = f", folder `{Path(str(options['data'])).name}`" if options.get("data") else ""
    last = next((row for row in reversed(rows) if any(name.startswith("val_") for name in row)), {})
    steps = rows[-1].get("step", record.total) if rows else record.total
    recipe = f"recipe {options['recipe']}, " if options.get("recipe") else ""
    return {
        "data": f"{images}{folder}",
        "training": f"{recipe}{counted(steps, 'step')}, seed {options.get('seed')}",
        "protocol": _PROTOCOLS[record.data_name] if last else "nothing was held out",
        "numbers": {name: last[key] for key, name in _NAMES.items() if key in last},
    }
