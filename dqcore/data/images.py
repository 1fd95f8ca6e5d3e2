"""From files to pixels: images of every kind are read as 8-bit RGB."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.data.containers import SUFFIXES
from dqcore.data.listing import list_images, split_images
from dqcore.data.reading import open_rgb
from dqcore.errors import InputError, whole_at_least, whole_given

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "SUFFIXES",
    "BrokenImageError",
    "broken_as",
    "image_to_tensor",
    "image_to_uint8",
    "list_images",
    "pad_to_stride",
    "read_image",
    "readable_images",
    "split_images",
    "tensor_to_image",
    "uint8_to_float",
]


class BrokenImageError(InputError):
    """A file cannot be read as an image; the message names the file and the reason."""


def read_image(path: str | Path, *, least_side: int | None = None) -> Image:
    """Read an image as 8-bit RGB, upright.

    EXIF rotation is applied, transparent pixels are laid over white, grey of 12 and 16 bits keeps its upper 8, and of
    an animation the first frame is read. BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read, whatever a file is called.
    Pillow's limit on decompression bombs stays on, and the pixels may take a fortieth of the memory;
    :func:`dqcore.data.reading.allow_pixels` or the environment variable ``DQCORE_MAX_PIXELS`` name another limit.

    Args:
        path: A file, or an image in an archive: ``shard.tar::cat/1.jpg``.
        least_side: Let a JPEG be decoded at a half, a quarter or an eighth of its size, as long as its shorter side
            keeps twice as many pixels: faster, for an image that is resized to it afterwards. None decodes it whole.

    Raises:
        BrokenImageError: the file is missing, no regular file, damaged, too large, or holds floating-point or 32-bit
            pixels.
        InputError: ``least_side`` is below 1.
    """
    whole_at_least(1, least_side=least_side)
    try:
        return open_rgb(path, least_side)
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise BrokenImageError(f"{path}: {str(error) or type(error).__name__}") from error


@contextlib.contextmanager
def broken_as(path: str | Path) -> Iterator[None]:
    """While this is open, what an image is refused for becomes a :class:`BrokenImageError` that names the file."""
    try:
        yield
    except BrokenImageError:
        raise
    except InputError as error:
        raise BrokenImageError(f"{path}: {error}") from error


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
    """Pixels of an RGB image: ``(3, H, W)`` uint8.

    Raises:
        InputError: The image is of another mode.
    """
    mode = getattr(image, "mode", "RGB")
    if mode != "RGB":
        raise InputError(
            f"image: expected mode RGB, got {mode}: image.convert('RGB'); dqcore.data.read_image does that"
        )
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def uint8_to_float(pixels: Tensor) -> Tensor:
    """``x / 127.5 - 1``: uint8 pixels to float32 in [-1, 1], any shape."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def image_to_tensor(image: Image) -> Tensor:
    """An RGB image as ``(3, H, W)`` float32 in [-1, 1].

    Raises:
        InputError: The image is of another mode.
    """
    return uint8_to_float(image_to_uint8(image))


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column of ``(B, C, H, W)`` until both sides are multiples of ``stride``, at least 1."""
    whole_given(1, stride=stride)
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def tensor_to_image(pixels: Tensor) -> Image:
    """The nearest 8-bit image of ``(3, H, W)`` values in [-1, 1]; values outside are clamped.

    Raises:
        InputError: Pixels of another shape, such as a batch.
    """
    from PIL import Image

    if pixels.dim() != 3 or pixels.shape[0] != 3:
        one = "; of a batch take one image, pixels[0]" if pixels.dim() == 4 else ""
        raise InputError(f"pixels: expected (3, H, W), got {tuple(pixels.shape)}{one}")
    values = pixels.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
