"""What the kinds of archives have in common, and each of them: tar, zip, LMDB."""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from dqcore.backends import main_memory
from dqcore.errors import InputError

__all__ = ["DATABASE", "SUFFIXES", "UNREAD", "Archive", "Lmdb", "Tar", "Zip", "is_image_name"]

#: Endings of the files that are taken from a folder or an archive; a ``.txt`` list may name any file.
SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Endings of images that a folder may hold and that are not read, which is said.
UNREAD = (".avif", ".heic", ".heif", ".jp2", ".jxl")
#: The file by which a folder is known as an LMDB database.
DATABASE = "data.mdb"
#: Offset and size of a file of a tar that cannot be read.
_NOWHERE = (0, -1)
#: Bytes of the end of a zip file, with the longest comment.
_MOST_END = 22 + 0xFFFF
#: An image in an archive may take this part of the memory before it is decoded.
_SHARE = 1 / 40


class Archive(Protocol):
    """Images in one file, or in one database."""

    def names(self) -> list[str]:
        """Names of the images, sorted."""
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


def _normal(archive: Path, name: str) -> str:
    """A name without ``./`` and the like.

    Raises:
        InputError: It leads out of the archive.
    """
    normal = posixpath.normpath(name).lstrip("/")
    if ".." in normal.split("/"):
        raise InputError(f"{archive}: its file {name!r} leads out of it")
    return normal


def _check_size(size: int) -> None:
    limit = int(main_memory() * _SHARE)
    if size > limit:
        raise InputError(f"its {size} bytes are more than the limit of {limit}, a fortieth of the memory")


class Tar:
    """Where each file of a tar lies; reads are by offset, so processes and threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                links = {}
                for member in tar:
                    if member.isreg():  # of a sparse file, the holes are left out, so that it has no place to read from
                        place = _NOWHERE if member.issparse() else (member.offset_data, member.size)
                        self._places[_normal(path, member.name)] = place
                    elif member.islnk() or member.issym():
                        base = "" if member.islnk() else posixpath.dirname(member.name)
                        links[_normal(path, member.name)] = posixpath.normpath(posixpath.join(base, member.linkname))
                _check_end(path, tar.offset)
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path}: damaged, or compressed; expected a plain tar ({error})") from error
        self._places |= {name: self._place(target, links) for name, target in links.items()}

    def _place(self, target: str, links: dict[str, str]) -> tuple[int, int]:
        """Where what a link leads to lies; of one that leads nowhere, whose image is broken, less than nothing."""
        for _ in range(40):  # as many as a file system follows
            target = links.get(target, target)
        return self._places.get(target, _NOWHERE)

    def names(self) -> list[str]:
        """Names of the images, sorted."""
        return sorted(filter(is_image_name, self._places))

    def read(self, name: str) -> bytes:
        """See :class:`Archive`."""
        if name not in self._places:
            raise FileNotFoundError(f"no {name} in {self._path}")
        start, size = self._places[name]
        if size < 0:
            raise FileNotFoundError(f"{name} in {self._path} is a link to nothing in it, or a sparse file")
        _check_size(size)
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


class _OfProcess:
    """Something open that a forked process opens again: both would move the same file position."""

    def __init__(self) -> None:
        self._open: tuple[int, Any] | None = None

    def handle(self) -> Any:
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


class Zip(_OfProcess):
    """A zip file, compressed or not."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        infos = self.handle().infolist()
        _check_count(path, len(infos))
        self._infos = {_normal(path, info.filename): info for info in infos if info.filename and not info.is_dir()}

    def _new(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except OSError:
            raise
        except Exception as error:  # of a damaged directory, also those of decoding names, and of lists that are short
            raise InputError(f"{self._path}: damaged, expected a zip file ({error})") from error

    def names(self) -> list[str]:
        """Names of the images, sorted."""
        return sorted(filter(is_image_name, self._infos))

    def read(self, name: str) -> bytes:
        """See :class:`Archive`."""
        if name not in self._infos:
            raise FileNotFoundError(f"no {name} in {self._path}")
        info = self._infos[name]
        _check_size(info.file_size)
        try:
            return self.handle().read(info)
        except Exception as error:  # zlib's errors, encryption, unknown compression
            raise InputError(f"its archive is damaged ({error})") from error


def _check_count(path: Path, found: int) -> None:
    """Refuse a zip file with fewer files than it counts: ``zipfile`` reads over those that a damaged length hides."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_END))
        end = file.read()
    place = end.rfind(b"PK\5\6") + 10
    counted = int.from_bytes(end[place : place + 2], "little")
    if counted != 0xFFFF and (found - counted) % 0x10000:  # a larger number is 0xFFFF, or its lower 16 bits
        raise InputError(f"{path}: damaged, it counts {counted} files and {found} are found")


class Lmdb(_OfProcess):
    """An LMDB database of encoded images; the name of each is its key, with bytes that are no plain text as ``%XX``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.handle()

    def _new(self) -> Any:
        try:
            import lmdb
        except ImportError as error:
            raise InputError(f"{self._path}: an LMDB database needs: pip install 'dqcore[lmdb]'") from error
        try:
            found = lmdb.open(os.fspath(self._path), readonly=True, lock=False, readahead=False, max_spare_txns=16)
        except lmdb.Error as error:
            raise InputError(f"{self._path}: damaged, or open already ({error})") from error
        needed = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
        if (self._path / DATABASE).stat().st_size < needed:  # reading on would end the process by a signal
            found.close()
            raise InputError(f"{self._path}: cut off, {DATABASE} has fewer than its {needed} bytes")
        return found

    def _keys(self) -> Iterator[bytes]:
        with self.handle().begin(buffers=False) as transaction:
            yield from transaction.cursor().iternext(keys=True, values=False)

    def names(self) -> list[str]:
        """Names of the images, sorted."""
        try:
            return sorted(quote_from_bytes(key, safe="") for key in self._keys())
        except Exception as error:  # lmdb's, of a damaged page
            raise InputError(f"{self._path}: damaged ({error})") from error

    def read(self, name: str) -> bytes:
        """See :class:`Archive`."""
        try:
            with self.handle().begin() as transaction:
                value = transaction.get(unquote_to_bytes(name)) if name else None
        except Exception as error:  # lmdb's, of a damaged page
            raise InputError(f"its archive is damaged ({error})") from error
        if value is None:
            raise FileNotFoundError(f"no {name} in {self._path}")
        _check_size(len(value))
        return value
