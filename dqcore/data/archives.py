"""Images in archives: ``.tar`` shards, ``.zip`` files, and LMDB databases as LSUN comes in.

An image in an archive has a path like any other: ``shard.tar::cat/1.jpg``, ``church_train_lmdb::0a1b``. Whatever reads
a file by :mod:`dqcore.data.stored` reads it by such a path too, so lists, names in an index and records of a run can
hold it.

A tar is indexed once, by ``tarfile`` of the standard library, and then read by offset. A loader that streams shards,
such as webdataset's, gives no image by its number, and here the images of a step follow from seed and step alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from dqcore.data.containers import Archive
from dqcore.data.databases import DATABASE, Lmdb
from dqcore.data.tars import Tar
from dqcore.data.zips import Zip

__all__ = ["MARK", "is_archive", "is_archive_name", "member_path", "open_archive", "split_member"]

#: Between the path of an archive and the name of an image in it.
MARK = "::"
_ENDINGS = frozenset({".tar", ".zip", ".lmdb"})
#: Archives by their real paths, each with the time and the size that its file had when it was indexed.
_known: dict[str, tuple[tuple[int, int], Archive]] = {}


def is_archive(path: Path) -> bool:
    """Whether a path is that of a ``.tar``, ``.zip`` or ``.lmdb`` file, or of a folder with ``data.mdb``."""
    return (path.suffix.lower() in _ENDINGS and path.is_file()) or (path / DATABASE).is_file()


def is_archive_name(name: str) -> bool:
    """Whether a file is an archive to list, by its name."""
    return not name.startswith(".") and (name == DATABASE or os.path.splitext(name)[1].lower() in _ENDINGS)


def split_member(path: str | Path) -> tuple[Path, str] | None:
    """The archive and the name in it, of a path such as ``shard.tar::cat/1.jpg``; None for an ordinary path."""
    text = os.fspath(path)
    place = text.find(MARK)
    while place > 0:
        if is_archive(archive := Path(text[:place])):
            return archive, text[place + len(MARK) :]
        place = text.find(MARK, place + 1)
    return None


def member_path(archive: Path, name: str) -> Path:
    """The path of an image in an archive; :func:`split_member` is the inverse."""
    return Path(f"{archive}{MARK}{name}")


def open_archive(path: Path) -> Archive:
    """The archive of this path; it is indexed once in a process, and again if its file has changed.

    Raises:
        InputError: It is damaged, or the package ``lmdb`` is missing.
    """
    about = (path / DATABASE if path.is_dir() else path).stat()
    key, state = os.path.realpath(path), (about.st_mtime_ns, about.st_size)
    if key in _known and _known[key][0] != state:
        _known.pop(key)[1].close()
    if key not in _known:
        ending = ".lmdb" if path.is_dir() else path.suffix.lower()
        kind = Lmdb if ending == ".lmdb" else Tar if ending == ".tar" else Zip
        _known[key] = state, kind(path)
    return _known[key][1]
