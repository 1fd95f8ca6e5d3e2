"""Whether a tokenizer was trained on a photo: by the contents of its file, whatever it is called.

Training keeps a hash of each file in ``seen_images.json`` in the run's folder. A photo that was saved anew, in another
format or size, is another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from dqcore.data.stored import open_stored
from dqcore.errors import InputError
from dqcore.files import write_json

__all__ = ["RECORD", "Provenance", "hash_file", "provenance", "record_images", "say_provenance"]

#: The file in a run's folder.
RECORD = "seen_images.json"
#: More files than this, or more bytes, are not hashed: reading them would delay a run's first step by minutes.
LIMIT = 200_000
MOST_BYTES = 1 << 34
#: What a record says of its hashes. Those of earlier versions say nothing, and are of the length and both ends alone.
_WHOLE = {"hashed": "whole files"}
#: Bytes at either end that those are of; of a file of two ends or less, both kinds of hash are the same.
_ENDS = 1 << 16
_BLOCK = 1 << 20

Provenance = Literal["trained on", "held out", "unknown"]


def hash_file(path: Path) -> str:
    """A hash of a file's length and its bytes: 20 hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is no regular file, such as a pipe.
        InputError: The archive that it lies in is damaged.
    """
    with open_stored(path) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256(length.to_bytes(8, "little"))
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:20]


def _hash_of_ends(path: Path) -> str:
    """What earlier versions kept of a file."""
    with open_stored(path) as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256(length.to_bytes(8, "little"))
        digest.update(file.read(_ENDS))
        file.seek(max(min(_ENDS, length), length - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()[:20]


def record_images(folder: Path, training: Sequence[Path]) -> None:
    """Keep which files a run trains on, in its folder; nothing is kept of more than 200,000 files, or 16 GiB.

    Args:
        folder: The run's folder.
        training: Files that the run trains on; those that cannot be read are left out.
    """
    if len(training) > LIMIT or sum(map(_length, training)) > MOST_BYTES:
        (folder / RECORD).unlink(missing_ok=True)
        return
    hashes = set()
    for path in training:
        with contextlib.suppress(OSError, InputError):
            hashes.add(hash_file(path))
    write_json(folder / RECORD, {**_WHOLE, "training": sorted(hashes)})


def _length(path: Path) -> int:
    """Bytes of a file; 0 if it cannot be read."""
    with contextlib.suppress(OSError, InputError), open_stored(path) as file:
        return file.seek(0, os.SEEK_END)
    return 0


def provenance(checkpoint: Path, photos: Sequence[Path]) -> list[Provenance]:
    """What is known of each photo.

    Args:
        checkpoint: Folder of a training run, or of the model in it.
        photos: Files.

    Returns:
        For each, whether its file was trained on; all unknown where the run kept no record. A folder that is not
        called ``model`` has none but its own.

    Raises:
        InputError: The record cannot be read.
    """
    path = checkpoint / RECORD
    if not path.is_file() and checkpoint.resolve().name == "model":  # another's record says nothing of a copy beside it
        path = checkpoint.resolve().parent / RECORD
    if not path.is_file():
        return ["unknown"] * len(photos)
    hashed: Callable[[Path], str]
    try:
        record = json.loads(path.read_text())
        seen = set(record["training"])
        hashed = hash_file if "hashed" in record else _hash_of_ends
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a record of a run's images ({error})") from error
    return ["trained on" if hashed(photo) in seen else "held out" for photo in photos]


def say_provenance(found: Sequence[Provenance]) -> str:
    """In words, such as ``"24 held out"``, ``"3 trained on, 21 held out"`` or ``"24 unknown"`` with the reason."""
    order: tuple[Provenance, ...] = ("trained on", "held out", "unknown")
    parts = [(found.count(kind), kind) for kind in order]
    words = {"unknown": "unknown, the run kept no record of its files"}
    return ", ".join(f"{count} {words.get(kind, kind)}" for count, kind in parts if count)
