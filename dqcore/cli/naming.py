"""Names for the photos that a verb is given: in its output, its messages and its index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dqcore.data.archives import split_member
from dqcore.data.listing import image_name, is_collection, list_images, name_below, source_root
from dqcore.errors import InputError

__all__ = ["name_photos"]


def name_photos(photos: Sequence[Path]) -> list[tuple[str, Path]]:
    """Each photo's name and file. A name is relative to the photo's source; with several sources it begins with that.

    No name leads out of a folder, even if a list's path does, since streams and pictures are named after it.

    Raises:
        FileNotFoundError: There is nothing of that name.
        InputError: There is no photo, or two would be called the same.
    """
    if not photos:
        raise InputError("photos: expected at least one file or folder")
    named: dict[str, Path] = {}
    for source in photos:
        if not source.exists() and split_member(source) is None:
            raise FileNotFoundError(f"{source}: no such file or folder")
        root = source_root(source)
        for path in list_images(source) if is_collection(source) else [source]:
            name = image_name(path, root)
            if len(photos) > 1 and root == source:
                name = f"{source.resolve().name}/{name}"
            name = name_below(name)
            if name in named and named[name].resolve() != path.resolve():
                raise InputError(f"photos: {named[name]} and {path} would both be called {name}")
            named[name] = path
    return list(named.items())
