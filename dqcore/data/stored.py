"""What a file holds, whether it lies in a folder or in an archive."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import IO

from dqcore.data.archives import open_archive, split_member

__all__ = ["open_stored", "read_stored"]


def open_stored(path: str | Path) -> IO[bytes]:
    """A file to read from, for a path of a file or of an image in an archive (``shard.tar::cat/1.jpg``).

    Raises:
        OSError: It cannot be read, or is no regular file, such as a pipe.
        InputError: The archive that it lies in is damaged.
    """
    member = split_member(path)
    if member is not None:
        archive, name = member
        return io.BytesIO(open_archive(archive).read(name))
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block, a device may have no end
        raise OSError("not a regular file")
    return open(path, "rb")


def read_stored(path: str | Path) -> bytes:
    """All bytes of :func:`open_stored`."""
    with open_stored(path) as file:
        return file.read()
