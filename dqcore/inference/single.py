"""One stream into a folder that may be another command's: nothing of either is lost."""

from __future__ import annotations

from pathlib import Path

from dqcore.data.shards import INDEX, read_index
from dqcore.errors import InputError
from dqcore.files import folder_lock, remove_leftovers
from dqcore.inference.streams import write_stream_file

__all__ = ["write_alone"]


def write_alone(path: Path, data: bytes, *, overwrite: bool = False) -> bool:
    """Write a stream to a file of its own.

    The folder is locked meanwhile, for moments: a command that fills it has chosen names already, and two commands with
    one name must not both find it free.

    Args:
        path: The file.
        data: The stream.
        overwrite: Whether it may replace another stream; never one that the index of the folder lists.

    Returns:
        Whether it was written; False where the file holds the same bytes already.

    Raises:
        InputError: It may not be written there, or another process fills the folder.
    """
    with folder_lock(path.parent, "encoding"):
        remove_leftovers(path.parent, path.name)
        if overwrite and path.is_file() and path.read_bytes() != data and _is_listed(path):
            raise InputError(f"out: {path} is one of the streams that {INDEX} beside it lists; choose another name")
        return write_stream_file(path, data, overwrite=overwrite)


def _is_listed(path: Path) -> bool:
    """Whether the folder's index calls the file its own."""
    if not (path.parent / INDEX).is_file():
        return False
    index = read_index(path.parent)
    files = {entry.get("file") for entry in index["images"]} | set(index.get("begun", ()))
    return index.get("format") == "dqc" and path.name in files
