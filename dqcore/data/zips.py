"""Images in a zip file."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path

from dqcore.data.containers import OfProcess, check_size, is_image_name, normal_name, such_as
from dqcore.errors import InputError

__all__ = ["Zip"]

#: Bytes of the end of a zip file, with the longest comment.
_MOST_END = 22 + 0xFFFF
#: Bytes of what stands before a file's name where the file lies, and where in them the length of the name is.
_HEADER, _LENGTH = 30, slice(26, 28)
#: A flag: the name is UTF-8, else of code page 437.
_UTF8 = 0x800
#: The largest offset that a file can be read from.
_END_OF_ALL = (1 << 63) - 1


class Zip(OfProcess):
    """A zip file, compressed or not."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        infos = self.handle().infolist()
        _check_count(path, len(infos))
        files = [(normal_name(path, info.filename), info) for info in infos]
        times = Counter(name for name, _ in files if is_image_name(name))
        _check_names(path, [info for name, info in files if times[name] != 1])
        self._twice = [name for name, number in times.items() if number > 1]
        self._infos = {name: info for name, info in files if info.filename and not info.is_dir()}

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

    def passed_over(self) -> list[str]:
        """See :class:`Archive`."""
        return such_as(self._twice, "there more than once, of which the last is read")

    def read(self, name: str) -> bytes:
        """See :class:`Archive`."""
        if name not in self._infos:
            raise FileNotFoundError(f"no {name} in {self._path}")
        info = self._infos[name]
        check_size(info.file_size)
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


def _check_names(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip file in which a name differs from the one where its file lies, which ``read`` alone looks at.

    A damaged name may be none of an image, or that of another: then the file would be lost in silence.
    """
    with open(path, "rb") as file:
        for info in infos:
            file.seek(min(max(0, info.header_offset), _END_OF_ALL))
            name = file.read(int.from_bytes(file.read(_HEADER)[_LENGTH], "little"))
            if name != info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437"):
                raise InputError(f"{path}: damaged, its file {info.orig_filename!r} is called {name!r} where it lies")
