"""What a user names, loaded: trained tokenizers, and a hash of the images that they are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqcore.backends import choose_device
from dqcore.data.stored import read_stored
from dqcore.models.auto import TOKENIZERS, load_identified, load_saved

__all__ = ["hash_files", "load_named_tokenizer", "load_tokenizer", "pick_device"]

pick_device = choose_device  # for this file's old path, see dqcore/compat/moved.py


def load_tokenizer(path: Path, device: str = "auto") -> Any:
    """:func:`dqcore.models.auto.load_saved` for tokenizers, on a device of :func:`dqcore.backends.choose_device`."""
    return load_saved(path, TOKENIZERS).to(choose_device(device))


def load_named_tokenizer(path: Path, device: str = "auto") -> tuple[Any, str]:
    """:func:`load_tokenizer`, and the fingerprint of what was loaded: :func:`dqcore.models.auto.load_identified`."""
    model, identity = load_identified(path, TOKENIZERS)
    return model.to(choose_device(device)), identity


def hash_files(paths: Sequence[Path]) -> str:
    """A hash of the files' contents in their order, to tell whether two numbers were measured on the same images."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(read_stored(path)).digest())
    return digest.hexdigest()[:16]
