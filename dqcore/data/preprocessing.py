"""What the paper does with the images of each data set, by name."""

from __future__ import annotations

from typing import Literal, get_args

from dqcore.data.crops import CenterCrop, Crop, RandomCrop, RandomCropAtMost, RandomResizedCrop, WholeImage
from dqcore.errors import InputError

__all__ = ["CROPS", "CropKind", "Preprocessing", "crop_of", "preprocess"]

Preprocessing = Literal["imagenet", "ffhq", "celebahq", "lsun"]
CropKind = Literal["random", "random-at-most", "random-resized", "center"]

#: How training crops of each data set are cut. The shorter side is resized to the size of the crop before, except for
#: FFHQ, whose squares are cut from the image itself. For evaluation all take the middle square.
CROPS: dict[str, CropKind] = {"imagenet": "random", "ffhq": "random-resized", "celebahq": "center", "lsun": "center"}


def crop_of(kind: CropKind, size: int, resize: int | None = None, *, flip: bool = True) -> Crop:
    """A way to cut training crops.

    Args:
        kind: ``"random"``: shorter side to ``resize``, random square; ``"random-at-most"``: the same, but small images
            are not enlarged; ``"random-resized"``: a random square of 75 to 100 % of the area, resized to ``size``;
            ``"center"``: shorter side to ``resize``, the middle square, never mirrored.
        size: Height and width of a crop in pixels.
        resize: Pixels of the shorter side before; by default ``size``.
        flip: Mirror half of the random crops.

    Raises:
        InputError: There is no such kind, or a size that is none.
    """
    if kind not in get_args(CropKind):
        raise InputError(f"crop: expected one of {', '.join(get_args(CropKind))}, got {kind!r}")
    resize = size if resize is None else resize
    if kind == "random-resized":
        return RandomResizedCrop(size, flip=flip)
    if kind == "center":
        return CenterCrop(size, resize)
    return (RandomCropAtMost if kind == "random-at-most" else RandomCrop)(size, resize, flip)


def preprocess(name: str | None, size: int, *, training: bool) -> Crop:
    """What is done with each image of a data set.

    Args:
        name: ``"imagenet"``, ``"ffhq"``, ``"celebahq"`` or ``"lsun"``; None leaves images as they are.
        size: Height and width in pixels, unless ``name`` is None.
        training: Random crops, where the paper has them; else the middle square.

    Raises:
        InputError: There is no such data set, or a size that is none.
    """
    if name is None:
        return WholeImage()
    if name not in CROPS:
        raise InputError(f"preprocessing: expected one of {', '.join(CROPS)}, got {name!r}")
    return crop_of(CROPS[name], size) if training else CenterCrop(size, size)
