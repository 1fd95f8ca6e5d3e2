"""Whether a tokenizer was trained on a photo: by the contents of its file, whatever it is called.

Training keeps a hash of each file in ``seen_images.json`` in the run's folder. A photo that was saved anew, in another
format or size, is another file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dqcore.data.stored import open_stored
from dqcore.errors import InputError
from dqcore.files import write_json

__all__ = ["RECORD", "Provenance", "hash_file", "provenance", "record_images", "say_provenance"]

#: The file in a run's folder.
RECORD = "seen_images.json"
#: Files above this number are not hashed: reading them would delay a run's first step.
LIMIT = 200_000
#: Bytes that are read at either end of a file.
ENDS = 1 << 16

Provenance = Literal["trained on", "held out", "unknown"]


def hash_file(path: Path) -> str:
    """A hash of a file's length and its first and last 64 KiB: 20 hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is no regular file, such as a pipe.
        InputError: The archive that it lies in is damaged.
    """
    with open_stored(path) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256(length.to_bytes(8, "little"))
        digest.update(file.read(ENDS))
        if length > ENDS:
            file.seek(max(ENDS, length - ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()[:20]


def record_images(folder: Path, training: Sequence[Path]) -> None:
    """Keep which files a run trains on, in its folder; nothing is kept of more than 200,000 files.

    Args:
        folder: The run's folder.
        training: Files that the run trains on; those that cannot be read are left out.
    """
    if len(training) > LIMIT:
        (folder / RECORD).unlink(missing_ok=True)
        return
    hashes = set()
    for path in training:
        try:
            hashes.add(hash_file(path))
        except (OSError, InputError):
            continue
    write_json(folder / RECORD, {"training": sorted(hashes)})


def provenance(checkpoint: Path, photos: Sequence[Path]) -> list[Provenance]:
    """What is known of each photo.

    Args:
        checkpoint: Folder of a training run, or of the model in it.
        photos: Files.

    Returns:
        For each, whether its file was trained on; all unknown where the run kept no record.

    Raises:
        InputError: The record cannot be read.
    """
    for path in (checkpoint / RECORD, checkpoint.resolve().parent / RECORD):
        if path.is_file():
            break
    else:
        return ["unknown"] * len(photos)
    try:
        seen = set(json.loads(path.read_text())["training"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a record of a run's images ({error})") from error
    return ["trained on" if hash_file(photo) in seen else "held out" for photo in photos]


def say_provenance(found: Sequence[Provenance]) -> str:
    """In words, such as ``"24 held out"``, ``"3 trained on, 21 held out"`` or ``"24 unknown"`` with the reason."""
    order: tuple[Provenance, ...] = ("trained on", "held out", "unknown")
    parts = [(found.count(kind), kind) for kind in order]
    words = {"unknown": "unknown, the run kept no record of its files"}
    return ", ".join(f"{count} {words.get(kind, kind)}" for count, kind in parts if count)
