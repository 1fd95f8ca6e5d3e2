"""From files to pixels: folders are listed in a fixed order, images of every kind are read as 8-bit RGB."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of the files that :func:`list_images` takes from a folder; a ``.txt`` list may name any file.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class BrokenImageError(InputError):
    """A file cannot be read as an image; the message names the file and the reason."""


def list_images(source: str | Path) -> list[Path]:
    """Images of a folder, searched recursively, or the lines of a ``.txt`` list.

    Args:
        source: A folder (hidden files and folders are passed over), or a ``.txt`` file with one path a line, relative
            to the list's own folder.

    Returns:
        Paths. Those from a folder are sorted; those from a list are in the list's order.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: ``source`` is neither a folder nor a ``.txt`` file, or holds no image.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or list of images")
    if source.is_dir():
        paths = sorted(_walk(source), key=lambda path: path.relative_to(source).as_posix())
    elif source.suffix == ".txt":
        lines = (line.strip() for line in source.read_text(encoding="utf-8").splitlines())
        paths = [source.parent / line for line in lines if line]
    else:
        raise InputError(f"{source}: expected a folder of images or a .txt list of their paths")
    if not paths:
        raise InputError(f"{source}: holds no image ({', '.join(sorted(SUFFIXES))})")
    return paths


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
    count = max(at_least, round(share * len(paths))) if share else 0
    if count >= len(paths):
        raise InputError(f"share: holding out {count} of {len(paths)} images leaves none to train on")

    def fingerprint(path: Path) -> bytes:
        return hashlib.sha256(Path(os.path.relpath(path, root)).as_posix().encode()).digest()

    held_out = set(sorted(paths, key=fingerprint)[:count])
    return [path for path in paths if path not in held_out], [path for path in paths if path in held_out]


def read_image(path: str | Path) -> Image:
    """Read an image as 8-bit RGB, upright.

    EXIF rotation is applied, transparent pixels are laid over white, 16-bit grey keeps its upper 8 bits, and of an
    animation the first frame is read. Pillow's limit on decompression bombs stays on.

    Raises:
        BrokenImageError: the file is missing, damaged, too large, or holds floating-point pixels.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise BrokenImageError(f"{path}: {str(error) or type(error).__name__}") from error


def readable_images(
    paths: Iterable[Path], on_broken: Callable[[Path, str], object], *, read: Callable[[Path], Image] = read_image
) -> Iterator[tuple[Path, Image]]:
    """Each file that can be read, with its image, in the order of ``paths``; the others are reported and passed over.

    Args:
        paths: Files.
        on_broken: Called with each file that cannot be read, and with a message that names it and the reason.
        read: Returns the image of a file, or raises :class:`BrokenImageError`.
    """
    for path in paths:
        try:
            image = read(path)
        except BrokenImageError as error:
            on_broken(path, str(error))
        else:
            yield path, image


def image_to_uint8(image: Image) -> Tensor:
    """Pixels of an RGB image: ``(3, H, W)`` uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def uint8_to_float(pixels: Tensor) -> Tensor:
    """``x / 127.5 - 1``: uint8 pixels to float32 in [-1, 1], any shape."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def image_to_tensor(image: Image) -> Tensor:
    """An RGB image as ``(3, H, W)`` float32 in [-1, 1]."""
    return uint8_to_float(image_to_uint8(image))


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column of ``(B, C, H, W)`` until both sides are multiples of ``stride``."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def tensor_to_image(pixels: Tensor) -> Image:
    """The nearest 8-bit image of ``(3, H, W)`` values in [-1, 1]; values outside are clamped."""
    from PIL import Image

    values = pixels.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    for base, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.extend(
            Path(base, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        )
    return found


def _raise(error: OSError) -> None:
    raise error


def _to_rgb(image: Image) -> Image:
    from PIL import Image as pil

    if image.mode == "F":
        raise InputError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = pil.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        white = pil.new("RGBA", foreground.size, "white")
        image = pil.alpha_composite(white, foreground)
    return image.convert("RGB")
