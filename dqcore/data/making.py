"""What images become in a new data set: the same files, or crops of them in one format."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from dqcore.data.archives import MARK
from dqcore.data.crops import CenterCrop, Crop, RandomCropAtMost, WholeImage, resize_short_side
from dqcore.data.images import BrokenImageError, broken_as, read_image
from dqcore.data.listing import bare_name, name_below
from dqcore.data.reading import allow_pixels, check_sides, format_of, named_limit
from dqcore.data.shards import file_digest
from dqcore.data.stored import read_stored
from dqcore.errors import InputError, at_least
from dqcore.fields import check_fields

__all__ = ["Made", "MadeImages", "Making", "new_names"]


@dataclass(frozen=True)
class Making:
    """What becomes of each image.

    Attributes:
        size: Height and width of a crop in pixels; None leaves images whole, and their files as they are.
        crop: ``"center"``, ``"random"``, or ``"none"``: only the shorter side is resized to ``size``.
        resize: Pixels of the shorter side before a crop is cut; None: ``size``.
        crops: Random crops of each image.
        encoding: Format of the files that are written.
        quality: Of JPEG and WebP, 1 to 100.
        seed: Decides the random crops.
    """

    size: int | None = None
    crop: Literal["center", "random", "none"] = "center"
    resize: int | None = None
    crops: int = 1
    encoding: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 95
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size is None and (self.resize is not None or self.crops != 1):
            raise InputError("size: expected one with resize or crops, because images else stay as they are")
        if self.size is None:
            plain = {field.name: field.default for field in fields(self)}
            for name in ("crop", "encoding", "quality"):
                if getattr(self, name) != plain[name]:
                    raise InputError(f"size: expected one with {name}, because images else stay as they are")
        at_least(1, size=self.size, crops=self.crops)
        check_sides(size=self.size, resize=self.resize)
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality: expected a number from 1 to 100, got {self.quality}")
        if self.size is not None and self.resize is not None and (self.resize < self.size or self.crop == "none"):
            raise InputError(f"resize: expected at least size ({self.size}), and a crop to cut, got {self.resize}")
        if self.crops > 1 and self.crop != "random":
            raise InputError(f"crops: expected 1 with crop {self.crop}, got {self.crops}")

    def files(self, path: Path, name: str) -> list[tuple[str, bytes]]:
        """Names and bytes of the files that an image becomes.

        Args:
            path: The image.
            name: What :func:`new_names` calls it.

        Raises:
            BrokenImageError: It cannot be read.
        """
        image = read_image(path)  # also where the file is copied, so that no broken one is
        if self.size is None:
            data = read_stored(path)
            return [(name if bare_name(name) != name else f"{name}.{_format(data)}", data)]
        crop, rng = self._crop(self.size), random.Random(os.fsencode(f"{self.seed}/{name}"))  # names may be no UTF-8
        with broken_as(path):
            prepared = crop.prepare(resize_short_side(image, self.size) if self.crop == "none" else image)
        ending = {"jpeg": "jpg"}.get(self.encoding, self.encoding)
        numbers = [f"-{number:03d}" for number in range(self.crops)] if self.crops > 1 else [""]
        return [(f"{name}{number}.{ending}", self._encoded(crop.cut(prepared, rng))) for number in numbers]

    def _crop(self, size: int) -> Crop:
        if self.crop == "center":
            return CenterCrop(size, self.resize or size)
        return RandomCropAtMost(size, self.resize or size, flip=False) if self.crop == "random" else WholeImage()

    def _encoded(self, image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, self.encoding, **({} if self.encoding == "png" else {"quality": self.quality}))
        return file.getvalue()


class Made(NamedTuple):
    """What became of an image.

    Attributes:
        name: The image's name in its source.
        digest: Its :func:`dqcore.data.shards.file_digest`.
        files: Names and bytes; none if it is broken.
        reason: Why it is broken.
    """

    name: str
    digest: str
    files: list[tuple[str, bytes]]
    reason: str = ""


class MadeImages(Dataset[Made]):
    """What becomes of images, one by one, for loading in workers.

    Args:
        images: The name of each in its source, and its path.
        making: What becomes of them.
        targets: :func:`new_names` of them.
        labels: A class for each name, written beside the image as ``.cls``; none where it is empty.
    """

    def __init__(
        self, images: Sequence[tuple[str, Path]], making: Making, targets: Mapping[str, str], labels: Mapping[str, int]
    ) -> None:
        self.images, self.making, self.targets, self.labels = list(images), making, targets, labels
        self.limit = named_limit()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Made:
        name, path = self.images[index]
        digest = file_digest(path)
        try:
            with allow_pixels(self.limit):
                files = self.making.files(path, self.targets[name])
        except BrokenImageError as error:
            return Made(name, digest, [], str(error))
        if name in self.labels:
            label = str(self.labels[name]).encode()
            files = [each for file in files for each in (file, (f"{bare_name(file[0])}.cls", label))]
        return Made(name, digest, files)


def new_names(names: Sequence[str], *, whole: bool, dots: bool = True) -> dict[str, str]:
    """What images are called in a new data set: with their endings where files are copied ``whole``, else without.

    An archive's name is left out, unless two images would then be called the same; so class folders in shards stay
    class folders.

    Args:
        names: What they are called in their source.
        whole: Whether files are copied.
        dots: Whether names may have dots beside that of the ending; webdataset takes the first one for the ending's.

    Raises:
        InputError: Two images would be called the same.
    """
    short = [name_below(name.rpartition(MARK)[2]) for name in names]
    long = [name_below(name.replace(MARK, "/")) for name in names]
    choices = (
        (short, long) if whole else ([bare_name(name) for name in short], [bare_name(name) for name in long], long)
    )
    for found in choices:
        found = found if dots else [_without_dots(name, whole) for name in found]
        if len(set(found)) == len(found):
            return dict(zip(names, found, strict=True))
    raise InputError("source: two of its images would be called the same")


def _without_dots(name: str, whole: bool) -> str:
    path = PurePosixPath(name)
    ending = path.suffix if whole and bare_name(name) != name else ""
    return str(path.with_name(path.name.removesuffix(ending).replace(".", "_") + ending))


def _format(data: bytes) -> str:
    format = format_of(io.BytesIO(data)).lower()
    return {"mpo": "jpg"}.get(format, format)  # several JPEGs in a file, of which the first is read
