"""Writing files so that they are whole or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["write_atomically", "write_json"]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file; if the program is killed meanwhile, the old file stays as it was.

    Args:
        path: The file; its folder is made if it is missing.
        write: Called with a binary file to write the contents to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, with :func:`write_atomically`."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
