"""PNG files that dqcore writes: marked as its own, so that it overwrites no other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dqcore.errors import InputError
from dqcore.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_targets", "is_ours", "write_picture"]

#: What the ``Software`` entry of a PNG file says.
MARK = "dqcore"


def write_picture(path: Path, picture: Image, kind: str = "picture") -> None:
    """Write a picture as a PNG file that says who made it, and as what, such as ``"sample"``."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", MARK)
    info.add_text("Description", kind)
    write_atomically(path, lambda file: picture.save(file, format="PNG", pnginfo=info))


def is_ours(path: Path, kind: str | None = None) -> bool:
    """Whether a file is a picture that :func:`write_picture` made; with ``kind``, as that."""
    from PIL import Image

    if not path.is_file():  # a pipe would block
        return False
    with contextlib.suppress(Exception), Image.open(path) as image:  # a decoder may raise anything
        return image.info.get("Software") == MARK and kind in (None, image.info.get("Description"))
    return False


def check_targets(targets: Iterable[Path]) -> None:
    """Raise if two pictures would go to one file, or one over a file that dqcore did not make.

    Args:
        targets: The files that are going to be written.

    Raises:
        InputError: The message names the file.
    """
    seen: set[Path] = set()
    for target in targets:
        if target in seen:
            raise InputError(f"images: two of them would be written to {target}")
        seen.add(target)
        if target.exists() and not is_ours(target):
            raise InputError(f"out: {target} is there already and was not made by dqcore; choose another folder")
