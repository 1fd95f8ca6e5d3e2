"""The same photos as JPEG and WebP files of at most the same number of bytes, as Pillow writes them.

A file's every byte counts, its header included. Where even the lowest quality takes more bytes than there are, the
smallest file is taken, and counted as too large.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dqcore.data.images import image_to_tensor, tensor_to_image
from dqcore.distributed import World
from dqcore.metrics.distortion import psnr, similarities

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CODECS", "Decibels", "Ladder", "PeerFile", "PeerNumbers", "PeerTotals", "PictureFormat", "ladders"]


@dataclass(frozen=True)
class PictureFormat:
    """A picture format.

    Attributes:
        name: For people.
        kind: Pillow's name.
        lowest: Lowest quality.
        highest: Highest quality.
        largest: The longest side that it can hold, in pixels.
        options: What else Pillow is told.
    """

    name: str
    kind: str
    lowest: int
    highest: int
    largest: int
    options: dict[str, Any]

    def encode(self, image: Image, quality: int) -> bytes:
        """An 8-bit RGB image as a file."""
        buffer = io.BytesIO()
        image.save(buffer, self.kind, quality=quality, **self.options)
        return buffer.getvalue()


#: The formats that a tokenizer is compared with: JPEG with tables made for the photo, WebP as Pillow writes it.
CODECS = (
    PictureFormat("JPEG", "JPEG", 1, 95, 65500, {"optimize": True}),
    PictureFormat("WebP", "WEBP", 0, 100, 16383, {"method": 4}),
)


@dataclass(frozen=True)
class PeerFile:
    """A photo in a codec's file.

    Attributes:
        data: The file.
        quality: Its quality, in the codec's own numbers.
        fits: Whether the file has at most the bytes that were asked for.
    """

    data: bytes
    quality: int
    fits: bool

    def pixels(self) -> Tensor:
        """The decoded photo, ``(3, H, W)`` in [-1, 1]."""
        from PIL import Image as Images

        with Images.open(io.BytesIO(self.data)) as picture:
            return image_to_tensor(picture.convert("RGB"))


@dataclass
class Ladder:
    """A photo at the qualities of a codec; each is made once."""

    codec: PictureFormat
    image: Image
    _files: dict[int, bytes] = field(default_factory=dict)

    def within(self, limit: int) -> PeerFile:
        """The file of the highest quality that has at most ``limit`` bytes; the smallest where none has."""
        low, high = self.codec.lowest, self.codec.highest
        if len(self._at(low)) > limit:
            return PeerFile(self._at(low), low, False)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self._at(middle)) <= limit else (low, middle - 1)
        return PeerFile(self._at(low), low, True)

    def _at(self, quality: int) -> bytes:
        if quality not in self._files:
            self._files[quality] = self.codec.encode(self.image, quality)
        return self._files[quality]


@dataclass(frozen=True)
class PeerNumbers:
    """A peer on all photos; means are over photos.

    Attributes:
        name: The codec, or the tokenizer.
        psnr: dB.
        ssim: At most 1; None where only PSNR was measured.
        ms_ssim: At most 1; None where only PSNR was measured, or a photo is too small for it.
        bytes_per_image: Mean size of a file.
        bits_per_pixel: Bits of all files over the pixels of all photos.
        too_large: How many of its files have more bytes than they were to have.
        left_out: How many photos it cannot hold; its numbers are of the others.
    """

    name: str
    psnr: float
    ssim: float | None
    ms_ssim: float | None
    bytes_per_image: float
    bits_per_pixel: float
    too_large: int
    left_out: int = 0


class PeerTotals:
    """A peer's numbers, added up photo by photo.

    Attributes:
        name: The codec, or the tokenizer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: list[list[float]] = []
        self._too_large = self._left_out = 0

    def leave_out(self) -> None:
        """Count a photo that it cannot hold."""
        self._left_out += 1

    def add(self, image: Tensor, result: Tensor, size: int, fits: bool = True) -> None:
        """Measure one photo.

        Args:
            image: ``(3, H, W)`` in [-1, 1].
            result: What came back, the same shape.
            size: Bytes of its file.
            fits: Whether that is no more than it was to be.
        """
        pair = (image[None].cpu(), result[None].cpu())
        self._rows.append([float(psnr(*pair)), *self._similarities(*pair), size, image.shape[1] * image.shape[2]])
        self._too_large += not fits

    def _similarities(self, image: Tensor, result: Tensor) -> tuple[float, float]:
        similarity, scales = similarities(image, result)
        return float(similarity), float("nan") if scales is None else float(scales)

    def join(self, world: World) -> None:
        """Take in the photos of the other processes; every one calls this."""
        found = world.gather((self._rows, self._too_large, self._left_out))
        self._rows = [row for rows, *_ in found for row in rows]
        self._too_large, self._left_out = (sum(each[i] for each in found) for i in (1, 2))

    @property
    def empty(self) -> bool:
        """Whether it holds none of the photos."""
        return not self._rows

    def numbers(self) -> PeerNumbers:
        """Of all photos so far that it can hold, at least one."""
        decibels, similarity, scales, size, pixels = torch.tensor(self._rows, dtype=torch.float64).mean(0).tolist()
        known, known_scales = (None if math.isnan(value) else value for value in (similarity, scales))
        counts = self._too_large, self._left_out
        return PeerNumbers(self.name, decibels, known, known_scales, size, 8 * size / pixels, *counts)


class Decibels(PeerTotals):
    """A peer's PSNR alone: SSIM and MS-SSIM take a second for a megapixel, and a curve shows neither."""

    def _similarities(self, image: Tensor, result: Tensor) -> tuple[float, float]:
        return math.nan, math.nan


def ladders(image: Tensor, codecs: Sequence[PictureFormat] = CODECS) -> list[Ladder]:
    """A photo ``(3, H, W)`` in [-1, 1] for each codec that can hold it."""
    picture = tensor_to_image(image)
    return [Ladder(codec, picture) for codec in codecs if max(picture.size) <= codec.largest]
