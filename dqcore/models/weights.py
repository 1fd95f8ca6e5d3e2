"""The weights that come with the package: a folder for each preset that has some, with a model card."""

from __future__ import annotations

from pathlib import Path

from dqcore.errors import InputError

__all__ = ["PRIOR", "TOKENIZER", "weights_folder"]

#: The presets whose weights a verb takes where the user names no tokenizer, or no prior.
TOKENIZER, PRIOR = "dqvae-dual-small", "dqtransformer-small"

_FOLDER = Path(__file__).resolve().parents[1] / "weights"


def weights_folder(preset: str) -> Path:
    """The folder of a preset's weights, as ``from_pretrained`` of its class takes it.

    Raises:
        InputError: None come with this preset.
    """
    folder = _FOLDER / preset
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
        raise InputError(f"name: no weights come with preset {preset!r}, only with {known or 'none'}")
    return folder
