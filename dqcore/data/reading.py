"""From one file to the pixels of an 8-bit RGB image: which files are read at all, and what becomes of every mode."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from dqcore.backends import main_memory
from dqcore.data.stored import open_stored
from dqcore.errors import InputError, whole_at_least

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FORMATS",
    "LIMIT_VARIABLE",
    "allow_pixels",
    "check_made",
    "check_read",
    "check_sides",
    "format_of",
    "named_limit",
    "open_rgb",
    "pixel_limit",
]

#: Pillow's names of the formats that are read, whatever a file is called. Others, such as EPS, run other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: An image may take this part of the memory, at 3 bytes a pixel: a model needs many more of them.
_SHARE = 1 / 40
#: A JPEG that is decoded smaller keeps this many times the pixels in each direction that it is resized to afterwards.
SPARE = 2
#: By which Pillow multiplies the values of grey PNG files of 1, 2 and 4 bits.
_GREY = {"1": 255, "L;2": 85, "L;4": 17}
#: A tag of TIFF files.
_PHOTOMETRIC = 262
#: The environment variable that replaces that limit: a number of pixels.
LIMIT_VARIABLE = "DQCORE_MAX_PIXELS"

_named: ContextVar[int | None] = ContextVar("max_pixels", default=None)


@contextlib.contextmanager
def allow_pixels(number: int | None) -> Iterator[None]:
    """While this is open, images of up to this many pixels are read; None leaves the limit as it is.

    Raises:
        InputError: ``number`` is below 1, or not whole.
    """
    whole_at_least(1, max_pixels=number)
    token = _named.set(_named.get() if number is None else number)
    try:
        yield
    finally:
        _named.reset(token)


def named_limit() -> int | None:
    """What :func:`allow_pixels` named. A data set keeps it for its workers, which do not see what is open here."""
    return _named.get()


def pixel_limit() -> tuple[int, bool]:
    """How many pixels an image may have, and whether the user named that number.

    Raises:
        InputError: The environment variable ``DQCORE_MAX_PIXELS`` is no number.
    """
    named = _named.get()
    if named is not None:
        return named, True
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise InputError(f"{LIMIT_VARIABLE}: expected a number of pixels, got {text!r}")
        return int(text), True
    return _usual_limit(), False


def _usual_limit() -> int:
    return int(main_memory() * _SHARE / 3)


def check_read(width: int, height: int, name: str) -> None:
    """Raise :class:`InputError`, which begins with ``name``, if an image that is read has too many pixels."""
    _check_pixels(width, height, pixel_limit()[0], name)


def check_made(width: int, height: int, name: str) -> None:
    """Raise :class:`InputError`, which begins with ``name``, if an image to be made of another has too many pixels.

    The limit is that of images that are read, but none that is below what the memory allows.
    """
    _check_pixels(width, height, max(pixel_limit()[0], _usual_limit()), name)


def _check_pixels(width: int, height: int, limit: int, name: str = "") -> None:
    if width * height > limit:
        more = f"{width}x{height} pixels are more than the limit of {limit}"
        raise InputError(f"{name}{more}; --max-pixels or {LIMIT_VARIABLE} sets it")


def check_sides(**sides: int | None) -> None:
    """Raise :class:`InputError` unless each side, given by its name, is None or that of a square that may be made."""
    whole_at_least(1, **sides)
    for name, side in sides.items():
        check_made(side or 1, side or 1, f"{name}: ")


def open_rgb(path: str | Path, least_side: int | None = None) -> Image:
    """The image of a file; see :func:`dqcore.data.images.read_image`, which turns every error into one."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit, named = pixel_limit()
    with open_stored(path) as file, _pillow_limit(off=named):
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise InputError("cannot identify image file") from None
        _check_pixels(image.width, image.height, limit)
        if least_side is not None:
            _shrink(image, SPARE * least_side)
        _scale_key(image)
        grey = _tiff_grey(image)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), image.format or "", grey)


def format_of(file: IO[bytes]) -> str:
    """Pillow's name of an image's format, such as ``"JPEG"``; the pixels, which may be many, are not read."""
    from PIL import Image

    with _pillow_limit(off=True), Image.open(file, formats=FORMATS) as header:
        return header.format or ""


def _scale_key(image: Image) -> None:
    """Of a grey PNG of few bits Pillow scales the values to 8 bits, but not the one that is transparent."""
    key, tiles = image.info.get("transparency"), getattr(image, "tile", [])
    if image.format == "PNG" and isinstance(key, int) and tiles:
        image.info["transparency"] = key * _GREY.get(str(tiles[0][3]), 1)


def _tiff_grey(image: Image) -> tuple[int, bool]:
    """Bits of a grey TIFF's values, and whether 0 is white, where Pillow does not see to it: above 8 bits."""
    tiles = getattr(image, "tile", [])
    if image.format != "TIFF" or not tiles or tiles[0][3][0] not in ("I;12", "I;16"):
        return 16, False
    return int(tiles[0][3][0][2:]), image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


def _shrink(image: Image, least_side: int) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth, its shorter side ``least_side`` pixels or more."""
    scale = min(image.size) // least_side
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))


@contextlib.contextmanager
def _pillow_limit(*, off: bool) -> Iterator[None]:
    """Switch off Pillow's own limit, where the user named one."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    if off:
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _to_rgb(image: Image, kind: str, grey: tuple[int, bool] = (16, False)) -> Image:
    from PIL import Image as pil

    if image.mode == "F":
        raise InputError("floating-point pixels have no fixed range")
    if image.mode == "I" and kind == "TIFF":
        raise InputError("32-bit pixels have no fixed range")
    if image.mode.startswith("I"):
        return _from_16_bits(image, *grey).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        raise InputError("16-bit colour with a transparent one: Pillow reads 8 bits alone")
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        white = pil.new("RGBA", foreground.size, "white")
        image = pil.alpha_composite(white, foreground)
    return image.convert("RGB")


def _from_16_bits(image: Image, bits: int, negative: bool) -> Image:
    """The upper 8 of so many bits; pixels of the transparent value are white."""
    from PIL import Image as pil

    values = np.asarray(image).astype(np.int64).clip(0, (1 << bits) - 1)
    grey = (values >> bits - 8).astype(np.uint8)
    if negative:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return pil.fromarray(grey)
