"""From an image to a square crop: the paper's pre-processing, with Pillow's bilinear filter.

A crop has two parts: ``prepare`` is the same each time an image is seen, so its result can be kept; ``cut`` draws the
random part from the generator it is given, always with the same number of draws.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


class Crop(Protocol):
    """Any image to a square of a fixed size."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """The part without chance."""
        ...

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A crop of a prepared image."""
        ...


@dataclass(frozen=True)
class RandomCrop:
    """Shorter side to ``resize`` pixels, a random square of ``size``, mirrored half of the time: ImageNet's crop."""

    size: int
    resize: int
    flip: bool = True

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image with its shorter side at ``resize``; smaller images grow."""
        return resize_short_side(image, max(self.resize, self.size))

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A random square, maybe mirrored."""
        left, top = rng.randint(0, image.width - self.size), rng.randint(0, image.height - self.size)
        crop = image.crop((left, top, left + self.size, top + self.size))
        return _mirror(crop, self.flip, rng)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random square that covers a share of the image's area in ``scale``, resized to ``size`` (FFHQ in the paper)."""

    size: int
    scale: tuple[float, float] = (0.75, 1.0)
    flip: bool = True

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A random square at ``size``, maybe mirrored."""
        side = round(math.sqrt(image.width * image.height * rng.uniform(*self.scale)))
        side = max(1, min(side, image.width, image.height))
        left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
        box = (left, top, left + side, top + side)
        crop = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return _mirror(crop, self.flip, rng)


@dataclass(frozen=True)
class CenterCrop:
    """Shorter side to ``resize`` pixels, the middle square of ``size``: how images are evaluated."""

    size: int
    resize: int

    def prepare(self, image: Image.Image) -> Image.Image:
        """The whole crop; nothing is left to chance."""
        image = resize_short_side(image, max(self.resize, self.size))
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def cut(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The prepared image."""
        return image


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize with the aspect ratio kept: the shorter side becomes ``size``, the longer one is rounded down."""
    short = min(image.size)
    if short == size:
        return image
    width, height = (max(size, side * size // short) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _mirror(image: Image.Image, flip: bool, rng: random.Random) -> Image.Image:
    mirrored = rng.random() < 0.5
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and mirrored else image
