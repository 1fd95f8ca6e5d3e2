"""Classes of images: by the folder that each lies in, or by the label that stands beside it in a ``.tar`` shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dqcore.data.archives import MARK, open_archive, split_member
from dqcore.errors import InputError

__all__ = ["folder_labels", "image_labels", "labels_of", "labels_written"]

#: Characters of a label that are kept; a number has at most 9.
_LONGEST = 40

#: Every class up to the largest number gets a name.
MOST_CLASSES = 1_000_000


def image_labels(
    paths: Sequence[Path], names: Sequence[str], classes: bool = True
) -> tuple[list[int], tuple[str, ...]]:
    """Classes of images: what their shards say (``1.cls`` beside ``1.jpg``, a number), else a class for each folder.

    Args:
        paths: Images.
        names: What each is called in its source.
        classes: Whether there are classes at all.

    Returns:
        The label of each image, -1 without classes, and the names of the classes by label.

    Raises:
        InputError: Images of one source have labels and others none, or an image lies in no folder of its own class.
    """
    written = [_written_label(path) for path in paths] if classes else []
    return labels_of(written, names, classes)


def labels_of(written: Sequence[str], names: Sequence[str], classes: bool) -> tuple[list[int], tuple[str, ...]]:
    """:func:`image_labels`, where it is known what is written beside each image; an empty text for nothing."""
    if not any(written):
        return folder_labels(names, classes)
    for name, text in zip(names, written, strict=True):
        if not text:
            raise InputError(f"classes: {name} has no label beside it, others have")
        if not (text.isascii() and text.isdigit()) or len(text) > 9:
            raise InputError(f"classes: expected the number of a class beside {name}, got {text!r}")
    labels = [int(text) for text in written]
    if max(labels) >= MOST_CLASSES:
        raise InputError(f"classes: expected numbers below {MOST_CLASSES:,} beside the images, got {max(labels)}")
    return labels, tuple(str(label) for label in range(max(labels) + 1))


def labels_written(named: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """What is written beside images (``1.cls`` beside ``1.jpg`` in a shard), by name, for those that have a label."""
    found = ((name, _written_label(path)) for name, path in named)
    return {name: text for name, text in found if text}


def folder_labels(names: Sequence[str], classes: bool) -> tuple[list[int], tuple[str, ...]]:
    """Classes of images: one for each folder.

    In a tar or zip file the folders are those in it; an LMDB database is one class.

    Args:
        names: Paths of the files, relative to the folder of all images.
        classes: Whether there are classes at all.

    Returns:
        The label of each file, -1 without classes, and the names of the classes in alphabetical order.

    Raises:
        InputError: A file lies in no folder of its own class.
    """
    if not classes:
        return [-1] * len(names), ()
    folders = [_folder(name) for name in names]
    if "." in folders:
        raise InputError(f"classes: expected a folder for each class, {names[folders.index('.')]} lies in none")
    known = tuple(sorted(set(folders)))
    places = {name: place for place, name in enumerate(known)}
    return [places[name] for name in folders], known


def _folder(name: str) -> str:
    archive, _, member = name.rpartition(MARK)
    if archive and not archive.lower().endswith((".tar", ".zip")):
        return PurePosixPath(archive).name
    return PurePosixPath(member).parent.as_posix()


def _written_label(path: Path) -> str:
    """What the ``.cls`` file of webdataset's shards says, a number if it is right; empty where there is none."""
    member = split_member(path)
    if member is None:
        return ""
    archive, name = member
    folder, _, file = name.rpartition("/")
    try:
        data = open_archive(archive).read(f"{folder}/{file.partition('.')[0]}.cls".lstrip("/"))
    except FileNotFoundError:
        return ""
    return data.decode(errors="replace").strip()[:_LONGEST]
