"""The report of a run: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dqcore.data.images import tensor_to_image
from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.report.photos import inline
from dqcore.report.pictures import error_scale

__all__ = ["Gallery", "Page", "check_page", "write_page"]

#: What the head of a page says.
_MARK = b'name="generator" content="dqcore"'
#: Small pictures of a gallery are enlarged by a whole factor, so that their longer side has about this many pixels.
GALLERY_SIZE = 192


@dataclass(frozen=True)
class Gallery:
    """A section of pictures: its heading, a sentence about it, and images ``(3, H, W)`` in [-1, 1] with captions."""

    title: str
    remark: str
    pictures: Sequence[tuple[Tensor, str]]


@dataclass(frozen=True)
class Page:
    """What a report shows; empty parts are left out.

    Attributes:
        title: Its heading.
        intro: A paragraph under it.
        headline: Numbers: ``name``, ``value``, ``unit``, ``remark`` of each.
        note: A sentence under the numbers.
        opening: Pictures before the photos.
        photos_title: Heading of the photos.
        photos_remark: A sentence about them.
        legend: ``name``, ``colour``, ``codes``, ``share`` of each granularity.
        photos: Of :func:`dqcore.report.photos.photo_entry`.
        peers: Rows of the table of peers.
        galleries: More pictures.
        results: Charts of what was measured: ``title``, ``remark``, ``svg``.
        charts: Charts of the training.
        settings: What to list in the table of settings.
    """

    title: str
    intro: str
    headline: Sequence[dict[str, str]] = ()
    note: str = ""
    opening: Sequence[Gallery] = ()
    photos_title: str = ""
    photos_remark: str = ""
    legend: Sequence[dict[str, str]] = ()
    photos: Sequence[dict[str, Any]] = ()
    peers: Sequence[Sequence[str]] = ()
    galleries: Sequence[Gallery] = ()
    results: Sequence[dict[str, str]] = ()
    charts: Sequence[dict[str, str]] = ()
    settings: dict[str, object] = field(default_factory=dict)


def check_page(out: Path | None) -> None:
    """Raise if a page would replace a file that is none of ours; None is the report in a run's own folder.

    Raises:
        InputError: The message names the file.
    """
    if out is None or not out.exists():
        return
    if out.is_dir():
        raise InputError(f"out: {out} is a folder, expected the name of an HTML file")
    with open(out, "rb") as file:
        if _MARK not in file.read(1000):
            raise InputError(f"out: {out} is there already and is no report of dqcore; choose another name")


def write_page(path: Path, page: Page) -> Path:
    """Write the HTML file, and return its path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("dqcore.report", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html").render(
        page=page,
        opening=[_gallery(gallery) for gallery in page.opening],
        galleries=[_gallery(gallery) for gallery in page.galleries],
        error_scale=error_scale(),
        data=_script_data(page.photos),
    )
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    return path


def _script_data(photos: Sequence[dict[str, Any]]) -> str:
    """The settings of all photos for the page's script; pictures that stand in the page already are left out."""
    kept = []
    for photo in photos:
        states = [dict(state) for state in photo["states"]]
        for name in ("image", "layer", "error"):
            states[photo["first"]][name] = None
        kept.append({"name": photo["name"], "first": photo["first"], "states": states})
    return json.dumps(kept).replace("<", "\\u003c")


def _gallery(gallery: Gallery) -> dict[str, Any]:
    pictures = []
    for image, caption in gallery.pictures:
        picture = tensor_to_image(image)
        scale = max(1, GALLERY_SIZE // max(picture.size))
        large = picture.resize((picture.width * scale, picture.height * scale))
        pictures.append({"caption": caption, "source": inline(large, "WEBP", quality=90)})
    shape = max((image.shape[2] / image.shape[1] for image, _ in gallery.pictures), default=1.0)
    broad = "wide" if shape > 1.5 else "broad" if shape > 1.2 else ""  # more than one picture in each: fewer in a row
    return {"title": gallery.title, "remark": gallery.remark, "pictures": pictures, "broad": broad}
