"""Which images a source holds, in a fixed order, and what each is called in it.

A source is a folder, searched recursively; a ``.txt`` list of paths; a ``.tar`` or ``.zip`` file; an LMDB database; or
a folder of archives. What it is shows in the path, so nothing else has to be said.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import logging
import os
import random
from collections.abc import Iterator, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import TypeVar

from dqcore.data.archives import is_archive, is_archive_name, member_path, open_archive
from dqcore.data.containers import SUFFIXES, UNREAD, is_image_name
from dqcore.errors import InputError, whole_at_least, whole_given
from dqcore.progress import counted

__all__ = [
    "bare_name",
    "choose",
    "files_for",
    "image_name",
    "is_collection",
    "list_images",
    "name_below",
    "read_lines",
    "source_root",
    "split_images",
    "spread",
]

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Endings that give way to that of what is made of a file; any other dot is part of a name, as in a database's key.
_REPLACED = SUFFIXES | {".dqc"}


def list_images(source: str | Path) -> list[Path]:
    """Images of a folder, a list or an archive.

    Args:
        source: A folder, searched recursively (hidden files and folders are passed over, links to folders followed); a
            ``.txt`` file with one path a line, relative to the list's own folder; a ``.tar`` or ``.zip`` file; an LMDB
            database. Of a folder that holds archives and no image, the images in all of them.

    Returns:
        Paths. Those from a folder or an archive are sorted; those from a list are in the list's order. An image in an
        archive is called ``shard.tar::cat/1.jpg``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        InputError: ``source`` is none of these, or holds no image, or an archive is damaged.
    """
    source = Path(source)
    if not source.exists():
        what = "file" if source.suffix else "folder or list of images"
        raise FileNotFoundError(f"{source}: no such {what}")
    if is_archive(source):
        paths = _members(source)
    elif source.is_dir():
        paths = _of_folder(source)
    elif source.suffix == ".txt":
        paths = [source.parent / line for line in read_lines(source)]
    else:
        raise InputError(
            f"{source}: expected a folder of images or a .txt list of their paths, "
            "a .tar or .zip file, or an LMDB database (a folder with data.mdb, or a .lmdb file)"
        )
    if not paths:
        raise InputError(f"{source}: holds no image ({', '.join(sorted(SUFFIXES))})")
    return paths


def is_collection(source: Path) -> bool:
    """Whether a path names many images, not one."""
    return source.is_dir() or source.suffix == ".txt" or is_archive(source)


def source_root(source: Path) -> Path:
    """The folder that images are named from: a plain folder itself, else the one that the list or archive lies in."""
    return source if source.is_dir() and not is_archive(source) else source.parent


def image_name(path: Path, root: Path) -> str:
    """What an image is called in a source with this root: ``cat/1.jpg``, ``shard.tar::cat/1.jpg``."""
    return Path(os.path.relpath(path, root)).as_posix()


def name_below(name: str) -> str:
    """A name without the way up to it: a list may name images anywhere, and what is made of them stays in a folder.

    It is never empty, also if a list names the folder that it lies in, as no image is called.
    """
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("..", "/", "//")) or "_"


def bare_name(name: str, endings: Set[str] = SUFFIXES) -> str:
    """A name without the ending of an image: ``cat/1`` of ``cat/1.jpg``, and ``a.b`` as it is."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in endings else name


def files_for(name: str, ending: str) -> Iterator[str]:
    """What a file made of an image may be called, the first that is free: ``a.dqc``, ``a.jpg.dqc``, ``a.jpg-2.dqc``..

    Args:
        name: The image's name, such as ``a.jpg``.
        ending: That of the file, such as ``.dqc``.
    """
    yield bare_name(name, _REPLACED) + ending
    yield name + ending
    yield from (f"{name}-{number}{ending}" for number in itertools.count(2))


def choose(paths: Sequence[Path], most: int | None, seed: int) -> list[Path]:
    """A random choice of so many paths, in their order; all of them if there are no more, or for None."""
    whole_at_least(0, most=most)
    if most is None or most >= len(paths):
        return list(paths)
    return [paths[index] for index in sorted(random.Random(seed).sample(range(len(paths)), most))]


def spread(paths: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many paths, or other things in order, evenly spread over all."""
    whole_at_least(0, most=most)
    number = min(most, len(paths))
    return tuple(paths[index * len(paths) // number] for index in range(number))


def split_images(
    paths: Sequence[Path], share: float, *, root: Path, at_least: int = 1
) -> tuple[list[Path], list[Path]]:
    """Split into training and validation images by a hash of each file's path below ``root``.

    The split depends neither on the machine nor on the order of ``paths``. When images are added, few of the others
    change sides.

    Args:
        paths: Images.
        share: Share of them to hold out, in [0, 1).
        root: Folder that the hashed paths are relative to.
        at_least: Hold out at least this many images, unless ``share`` is 0.

    Returns:
        ``(training, validation)``, each in the order of ``paths``.

    Raises:
        ValueError: ``share`` is outside [0, 1), or leaves no image to train on.
    """
    if not 0 <= share < 1:
        raise InputError(f"share: expected a number in [0, 1), got {share}")
    whole_given(0, at_least=at_least)
    count = max(at_least, round(share * len(paths))) if share else 0
    if count >= len(paths):
        raise InputError(f"share: holding out {count} of {len(paths)} images leaves none to train on")

    def fingerprint(path: Path) -> bytes:
        return hashlib.sha256(os.fsencode(image_name(path, root))).digest()

    held_out = set(sorted(paths, key=fingerprint)[:count])
    return [path for path in paths if path not in held_out], [path for path in paths if path in held_out]


def _members(archive: Path) -> list[Path]:
    opened = open_archive(archive)
    for line in opened.passed_over():
        log.warning("%s: %s", archive, line)
    return [member_path(archive, name) for name in opened.names()]


def _of_folder(source: Path) -> list[Path]:
    """The images of a folder; or, where there are none, those in its archives."""

    def place(path: Path) -> str:
        return path.relative_to(source).as_posix()

    images, archives, unread = _walk(source)
    if unread:
        log.warning(
            "%s: %s of kinds that are not read here, such as %s", source, counted(len(unread), "image"), min(unread)
        )
    if images and archives:
        left = counted(len(archives), "archive")
        log.warning("%s: %s beside the images not read, such as %s", source, left, min(archives))
    if images:
        return sorted(images, key=place)
    return [path for archive in sorted(archives, key=place) for path in _members(archive)]


def _walk(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Images and archives below a folder, and images of kinds that are not read.

    Links to folders are followed, but each folder is searched once, by its own path first.
    """
    images: list[Path] = []
    archives: list[Path] = []
    unread: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for base, folders, names in os.walk(waiting.pop(0), onerror=_raise):
            about = os.stat(base)
            if (about.st_dev, about.st_ino) in seen:
                folders.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            folders[:] = [name for name in folders if not name.startswith(".")]
            links += [path for name in folders if (path := Path(base, name)).is_symlink()]
            images += [Path(base, name) for name in names if is_image_name(name)]
            unread += [Path(base, name) for name in names if name.lower().endswith(UNREAD) and name[0] != "."]
            found = [Path(base, name) for name in names if is_archive_name(name)]
            archives += [path if is_archive(path) else path.parent for path in found]
        waiting += sorted(links)
    return images, archives, unread


def read_lines(source: Path) -> list[str]:
    """The lines of a list that are not empty; names that are not UTF-8 keep their bytes.

    Raises:
        InputError: It is no list.
    """
    if not source.is_file():
        raise InputError(f"{source}: expected a file with a path on each line")
    data = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise InputError(f"{source}: expected a list in UTF-8, it holds bytes of 0 (is it UTF-16?)")
    lines = (os.fsdecode(line).strip() for line in data.splitlines())
    return [line for line in lines if line]


def _raise(error: OSError) -> None:
    raise error
