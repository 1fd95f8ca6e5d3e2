"""A stream and its file: what is known of a stream that was made, and where it may be written.

A file is written alone by :func:`write_alone`; those of :mod:`dqcore.inference.stream_folder` come with an index.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from dqcore.data.shards import INDEX, read_index
from dqcore.errors import InputError
from dqcore.files import folder_lock, remove_leftovers, write_atomically

__all__ = ["SUFFIX", "Written", "write_alone", "write_stream_file"]

SUFFIX = ".dqc"


@dataclass(frozen=True)
class Written:
    """A photo's stream.

    Attributes:
        data: The stream.
        size: Height and width of the photo in pixels.
        num_codes: Its codes.
        estimate: Bits per pixel without entropy coding, see :func:`dqcore.metrics.bits_per_pixel`.
        finest: Whether every region has the finest granularity: there is no longer stream of this photo.
    """

    data: bytes
    size: tuple[int, int]
    num_codes: int
    estimate: float
    finest: bool

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the stream, as written, for each pixel of the photo."""
        return 8 * len(self.data) / (self.size[0] * self.size[1])


def write_stream_file(path: Path, data: bytes, *, overwrite: bool = False) -> bool:
    """Write a stream to a file.

    Returns:
        Whether it was written; False where the file holds the same bytes already.

    Raises:
        InputError: The file is there and holds something else. ``overwrite`` allows another stream, nothing else.
    """
    if path.exists():
        before = path.read_bytes()
        if before == data:
            return False
        if before[:3] != b"dqc":
            raise InputError(f"out: {path} is there and is no .dqc stream; choose another name")
        if not overwrite:
            raise InputError(f"out: {path} holds another stream; choose another name, or allow it with --overwrite")
    write_atomically(path, lambda file: file.write(data))
    return True


def write_alone(path: Path, data: bytes, *, overwrite: bool = False) -> bool:
    """Write a stream to a file of its own.

    Meanwhile its folder is locked, and so is every folder above that has an index. A command that fills such a folder
    has chosen its files' names already, and two commands must not both find one name free.

    Args:
        path: The file.
        data: The stream.
        overwrite: Whether it may replace another stream; never one that an index lists, in its folder or above.

    Returns:
        Whether it was written; False where the file holds the same bytes already.

    Raises:
        InputError: It may not be written there, or another process fills the folder or one above.
    """
    with contextlib.ExitStack() as locks:
        locks.enter_context(folder_lock(path.parent, "encoding"))
        indexed = _indexed(path)
        for folder in indexed:
            locks.enter_context(folder_lock(folder, "encoding"))
        remove_leftovers(path.parent, path.name)
        same = path.is_file() and path.read_bytes() == data
        for folder, name in indexed.items():
            if not same and _is_listed(folder, name):
                raise InputError(f"out: {path} is one of the streams that {folder / INDEX} lists; choose another name")
        return write_stream_file(path, data, overwrite=overwrite)


def _indexed(path: Path) -> dict[Path, str]:
    """The folders with an index that a file lies in, at any depth, and what it is called in each."""
    found: dict[Path, str] = {}
    for place in (Path(os.path.abspath(path)), path.parent.resolve() / path.name):  # with links, and without
        above = [folder for folder in place.parents if os.access(folder, os.R_OK) and (folder / INDEX).is_file()]
        found |= {folder: place.relative_to(folder).as_posix() for folder in above}
    return found


def _is_listed(folder: Path, name: str) -> bool:
    """Whether the folder's index calls a file its own; one that cannot be read is another program's."""
    try:
        index = read_index(folder)
    except (InputError, OSError):
        return False
    files = {entry.get("file") for entry in index["images"]} | set(index.get("begun", ()))
    return index.get("format") == "dqc" and name in files
