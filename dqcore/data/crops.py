"""From an image to a square crop: the paper's pre-processing, with Pillow's bilinear filter.

A crop is made in two steps. ``prepare`` does the same to an image every time, so its result can be kept. ``cut`` makes
the random choices; it always draws the same number of values from its generator.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dqcore.data.reading import check_made, check_sides
from dqcore.errors import InputError


class Crop(Protocol):
    """A way to cut a square of a fixed size from any image."""

    @property
    def least_side(self) -> int | None:
        """Pixels of the shorter side that suffice for it, where a file can be decoded smaller; None: all there are."""
        ...

    def prepare(self, image: Image.Image) -> Image.Image:
        """Do the part that is the same every time, such as resizing."""
        ...

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A crop of a prepared image."""
        ...


@dataclass(frozen=True)
class _ResizedFirst:
    """What crops have in common that resize the shorter side to ``resize`` pixels, or ``size`` if that is more."""

    size: int
    resize: int

    def __post_init__(self) -> None:
        check_sides(size=self.size, resize=self.resize)

    @property
    def least_side(self) -> int | None:
        """The side that images are resized to."""
        return max(self.resize, self.size)

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image with its shorter side resized; smaller images are enlarged."""
        return resize_short_side(image, max(self.resize, self.size))


@dataclass(frozen=True)
class RandomCrop(_ResizedFirst):
    """Resize the shorter side to ``resize`` pixels and cut a random square of ``size``: the paper's crop for ImageNet.

    With ``flip``, half of the crops are mirrored.
    """

    flip: bool = True

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A random square, mirrored or not."""
        left, top = rng.randint(0, image.width - self.size), rng.randint(0, image.height - self.size)
        crop = image.crop((left, top, left + self.size, top + self.size))
        return _mirror(crop, self.flip, rng)


@dataclass(frozen=True)
class RandomCropAtMost(RandomCrop):
    """A :class:`RandomCrop` that does not enlarge an image, unless it is smaller than the crop.

    So one ``resize`` suits photographs, which it makes small, and small pictures, which stay as they are.
    """

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image with its shorter side resized to ``resize`` pixels, if it is longer."""
        return resize_short_side(image, max(self.size, min(self.resize, *image.size)))


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a random square and resize it to ``size``: the paper's crop for FFHQ.

    The square covers a random share of the image's area, between the two of ``scale``. With ``flip``, half of the crops
    are mirrored.
    """

    size: int
    scale: tuple[float, float] = (0.75, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        check_sides(size=self.size)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale: expected two shares in (0, 1], the smaller one first, got {self.scale}")

    @property
    def least_side(self) -> int | None:
        """The side of an image whose smallest crop has ``size`` pixels."""
        return math.ceil(self.size / math.sqrt(self.scale[0]))

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A random square, resized to ``size``, mirrored or not."""
        side = round(math.sqrt(image.width * image.height * rng.uniform(*self.scale)))
        side = max(1, min(side, image.width, image.height))
        left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
        box = (left, top, left + side, top + side)
        crop = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return _mirror(crop, self.flip, rng)


@dataclass(frozen=True)
class WholeImage:
    """The image as it is, at its native size."""

    @property
    def least_side(self) -> int | None:
        """Every pixel is needed."""
        return None

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The image itself."""
        return image


@dataclass(frozen=True)
class CenterCrop(_ResizedFirst):
    """Resize the shorter side to ``resize`` pixels and cut the middle square of ``size``; used for evaluation."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """The finished crop: it has no random part."""
        image = super().prepare(image)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The prepared image."""
        return image


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shorter side is ``size`` pixels; the aspect ratio stays, the longer side is rounded down.

    Raises:
        InputError: The image is so narrow that its longer side would make it larger than one that is read.
    """
    short = min(image.size)
    if short == size:
        return image
    width, height = (max(size, side * size // short) for side in image.size)
    check_made(width, height, f"resized to {size} on its shorter side, its ")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _mirror(image: Image.Image, flip: bool, rng: random.Random) -> Image.Image:
    mirrored = rng.random() < 0.5
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and mirrored else image
