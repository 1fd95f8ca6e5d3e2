"""From files to pixels: folders are listed in a fixed order, images of every kind are read as 8-bit RGB."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.data.reading import open_rgb
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
        source: A folder (hidden files and folders are passed over, links to folders followed), or a ``.txt`` file with
            one path a line, relative to the list's own folder.

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
        paths = _read_list(source)
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
        return hashlib.sha256(os.fsencode(Path(os.path.relpath(path, root)).as_posix())).digest()

    held_out = set(sorted(paths, key=fingerprint)[:count])
    return [path for path in paths if path not in held_out], [path for path in paths if path in held_out]


def read_image(path: str | Path) -> Image:
    """Read an image as 8-bit RGB, upright.

    EXIF rotation is applied, transparent pixels are laid over white, 16-bit grey keeps its upper 8 bits, and of an
    animation the first frame is read. BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read, whatever a file is called.
    Pillow's limit on decompression bombs stays on, and the pixels may take a fortieth of the memory;
    :func:`dqcore.data.reading.allow_pixels` or the environment variable ``DQCORE_MAX_PIXELS`` name another limit.

    Raises:
        BrokenImageError: the file is missing, no regular file, damaged, too large, or holds floating-point or 32-bit
            pixels.
    """
    try:
        return open_rgb(path)
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
    """Images below a folder. Links to folders are followed, but each folder is searched once, by its own path first."""
    found: list[Path] = []
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
            found.extend(
                Path(base, name)
                for name in names
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
            )
        waiting += sorted(links)
    return found


def _read_list(source: Path) -> list[Path]:
    """The paths in a list; names that are not UTF-8 keep their bytes."""
    if not source.is_file():
        raise InputError(f"{source}: expected a file with a path on each line")
    data = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise InputError(f"{source}: expected a list in UTF-8, it holds bytes of 0 (is it UTF-16?)")
    lines = (os.fsdecode(line).strip() for line in data.splitlines())
    return [source.parent / line for line in lines if line]


def _raise(error: OSError) -> None:
    raise error
