"""What the kinds of archives have in common: which names they list, how much they read, how they stay open."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any, Protocol

from dqcore.backends import main_memory
from dqcore.errors import InputError
from dqcore.progress import counted

__all__ = ["SUFFIXES", "UNREAD", "Archive", "OfProcess", "check_size", "is_image_name", "normal_name", "such_as"]

#: Endings of the files that are taken from a folder or an archive; a ``.txt`` list may name any file.
SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Endings of images that a folder may hold and that are not read, which is said.
UNREAD = (".avif", ".heic", ".heif", ".jp2", ".jxl")
#: An image in an archive may take this part of the memory before it is decoded.
_SHARE = 1 / 40


class Archive(Protocol):
    """Images in one file, or in one database."""

    def names(self) -> list[str]:
        """Names of the images, sorted."""
        ...

    def passed_over(self) -> list[str]:
        """What is to be said of images that :meth:`names` leaves out, a line for each reason."""
        ...

    def read(self, name: str) -> bytes:
        """What the file of this name holds; it need not be an image.

        Raises:
            FileNotFoundError: There is none.
            InputError: It cannot be read, or is larger than the memory allows.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def is_image_name(name: str) -> bool:
    """Whether a file is one to list, by its name: the ending of an image, and nothing hidden on the way to it."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in SUFFIXES


def normal_name(archive: Path, name: str) -> str:
    """A name without ``./`` and the like.

    Raises:
        InputError: It leads out of the archive.
    """
    normal = posixpath.normpath(name).lstrip("/")
    if ".." in normal.split("/"):
        raise InputError(f"{archive}: its file {name!r} leads out of it")
    return normal


def check_size(size: int) -> None:
    """Raise :class:`InputError` if so many bytes of one file are more than the memory allows."""
    limit = int(main_memory() * _SHARE)
    if size > limit:
        raise InputError(f"its {size} bytes are more than the limit of {limit}, a fortieth of the memory")


def such_as(names: list[str], what: str) -> list[str]:
    """A line that says how many files ``what`` is true of, and names one; none where there are no files."""
    return [f"{counted(len(names), 'file')} {what}, such as {min(names)}"] if names else []


class OfProcess:
    """Something open that a forked process opens again: both would move the same file position."""

    def __init__(self) -> None:
        self._open: tuple[int, Any] | None = None

    def handle(self) -> Any:
        """What is open in this process."""
        if self._open is None or self._open[0] != os.getpid():
            self.close()
            self._open = (os.getpid(), self._new())
        return self._open[1]

    def close(self) -> None:
        """Close it, if it is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _new(self) -> Any:
        raise NotImplementedError
