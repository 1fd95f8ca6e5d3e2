"""JSON objects that come back as they were written: with a checksum, which notices a damaged file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.files import write_json

__all__ = ["read_sealed", "seal_of", "write_sealed"]

_KEY, _DIGITS = "checksum", 64


def seal_of(value: Mapping[str, Any]) -> str:
    """The SHA-256 of plain values, however they are laid out as JSON; keys are texts."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """:func:`dqcore.files.write_json` of an object, with its checksum as the last entry."""
    rest = {name: part for name, part in value.items() if name != _KEY}
    write_json(path, {**rest, _KEY: seal_of(rest)})


def read_sealed(path: Path) -> Any:
    """What a file of JSON holds, without its checksum; files of earlier versions have none.

    Raises:
        InputError: The checksum is wrong.
        ValueError: It is no JSON.
        OSError: It cannot be read.
    """
    try:
        value = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("too many brackets") from error
    if not isinstance(value, dict):
        return value
    last = next(reversed(value), "")
    if last == _KEY or (isinstance(value.get(last), str) and len(value[last]) == _DIGITS):
        known = value.pop(last)
        if last != _KEY or known != seal_of(value):  # the checksum's own name may be what is damaged
            raise InputError(f"{path}: damaged, or changed by hand: its checksum is wrong")
    return value
