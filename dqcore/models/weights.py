"""The weights that come with the package: a folder for each preset that has some, with a model card."""

from __future__ import annotations

from pathlib import Path

from dqcore.errors import InputError

__all__ = ["TOKENIZER", "weights_folder"]

#: The preset whose weights a verb takes where the user names no tokenizer.
TOKENIZER = "dqvae-dual-small"

_FOLDER = Path(__file__).resolve().parents[1] / "weights"


def weights_folder(preset: str) -> Path:
    """The folder of a preset's weights, as :meth:`dqcore.DQVAE.from_pretrained` takes it.

    Raises:
        InputError: None come with this preset.
    """
    folder = _FOLDER / preset
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
        raise InputError(f"name: no weights come with preset {preset!r}, only with {known or 'none'}")
    return folder
