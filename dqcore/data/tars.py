"""Images in a plain tar."""

from __future__ import annotations

import os
import posixpath
import tarfile
from pathlib import Path
from typing import IO

from dqcore.data.containers import check_size, is_image_name, normal_name, such_as
from dqcore.errors import InputError

__all__ = ["Tar"]

#: Offset and size of a file of a tar that cannot be read.
_NOWHERE = (0, -1)
#: First bytes of images, but for BMP and WebP.
_FIRST = (b"GIF8", b"\xff\xd8\xff", b"\x89PNG", b"P5\n", b"P5 ", b"P6\n", b"P6 ", b"II*\0", b"MM\0*")


class Tar:
    """Where each file of a tar lies; reads are by offset, so processes and threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._twice: list[str] = []
        self._doubtful: list[tuple[str, tuple[int, int] | None]] = []
        links: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    self._add(member, links)
                _check_end(path, tar.offset)
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path}: damaged, or compressed; expected a plain tar ({error})") from error
        self._places |= {name: self._place(target, links) for name, target in links.items()}
        self._unnamed = self._images_of_other_names()

    def _add(self, member: tarfile.TarInfo, links: dict[str, str]) -> None:
        """Note where a file lies, or what a link leads to."""
        if not (member.isreg() or member.islnk() or member.issym()):
            return
        name, place = normal_name(self._path, member.name), None
        if not member.isreg():
            base = "" if member.islnk() else posixpath.dirname(member.name)
            links[name] = posixpath.normpath(posixpath.join(base, member.linkname))
        else:  # of a sparse file, the holes are left out, so that it has no place to read from
            place = _NOWHERE if member.issparse() else (member.offset_data, member.size)
            if name in self._places and is_image_name(name):
                self._twice.append(name)
            self._places[name] = place
        if member.offset_data - member.offset > tarfile.BLOCKSIZE and not is_image_name(name):
            self._doubtful.append((name, place))

    def _images_of_other_names(self) -> list[str]:
        """Names of files and links that hold an image and are not called one.

        A name of over 100 bytes, or with other letters than English ones, stands in a block that no checksum covers. If
        it is damaged there, the file may be called anything: so its first bytes are looked at.
        """
        with open(self._path, "rb") as file:
            return [name for name, place in self._doubtful if _is_image(file, *(place or self._places[name]))]

    def _place(self, target: str, links: dict[str, str]) -> tuple[int, int]:
        """Where what a link leads to lies; of one that leads nowhere, whose image is broken, less than nothing."""
        for _ in range(40):  # as many as a file system follows
            target = links.get(target, target)
        return self._places.get(target, _NOWHERE)

    def names(self) -> list[str]:
        """Names of the images, sorted."""
        return sorted(filter(is_image_name, self._places))

    def passed_over(self) -> list[str]:
        """See :class:`Archive`."""
        return [
            *such_as(self._unnamed, "not read, an image by its first bytes and not by its name (is it damaged?)"),
            *such_as(self._twice, "there more than once, of which the last is read"),
        ]

    def read(self, name: str) -> bytes:
        """See :class:`Archive`."""
        if name not in self._places:
            raise FileNotFoundError(f"no {name} in {self._path}")
        start, size = self._places[name]
        if size < 0:
            raise FileNotFoundError(f"{name} in {self._path} is a link to nothing in it, or a sparse file")
        check_size(size)
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)
        if len(data) != size:
            raise InputError("its archive is cut off")
        return data

    def close(self) -> None:
        """Nothing is open between two reads."""


def _check_end(path: Path, offset: int) -> None:
    """Refuse a tar whose files end before its end: ``tarfile`` takes a damaged header for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise InputError(f"{path}: damaged or cut off, there is no end mark after its last file")


def _is_image(file: IO[bytes], start: int, size: int) -> bool:
    """Whether what lies here begins as an image does."""
    file.seek(start)
    first = file.read(min(max(size, 0), 12))
    return first.startswith(_FIRST) or (first[:2], first[6:10]) == (b"BM", bytes(4)) or first[8:] == b"WEBP"
