"""The photographs that ship with the package: small crops of real photographs, for the demo and for trying things out.

``dqcore/data/sample/ATTRIBUTION.md`` names the photographers and the licences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dqcore.data.images import list_images
from dqcore.errors import InputError

__all__ = ["sample_folder", "sample_photos"]


def sample_folder(split: Literal["train", "heldout"]) -> Path:
    """The folder of a split. The crops of one photograph are all in the same split."""
    if split not in ("train", "heldout"):
        raise InputError(f"split: expected 'train' or 'heldout', got {split!r}")
    return Path(__file__).with_name("sample") / split


def sample_photos(split: Literal["train", "heldout"]) -> list[Path]:
    """The crops of a split, 128 x 128 pixel JPEG files, sorted by name."""
    return list_images(sample_folder(split))
