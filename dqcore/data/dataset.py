"""Images as a data set of PyTorch, for any training loop."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset

from dqcore.data.crops import Crop
from dqcore.data.images import broken_as, image_to_tensor, read_image
from dqcore.data.labels import image_labels
from dqcore.data.listing import image_name, list_images, source_root
from dqcore.data.preprocessing import CROPS, Preprocessing, preprocess
from dqcore.data.splits import LISTS, Split, listed_split
from dqcore.errors import InputError

__all__ = ["Images", "read_prepared"]


class Images(Dataset[tuple[Any, int]]):
    """The images of a source, for ``torch.utils.data.DataLoader`` and any loop over it.

    Item ``i`` is ``(image, label)``: float32 ``(3, H, W)`` in [-1, 1], and the image's class as an int, -1 without
    ``classes``, so that PyTorch's own collating makes batches of both. Random crops draw from PyTorch's random state:
    ``torch.manual_seed`` and a loader's ``generator`` and workers' seeds decide them. It can be pickled, and is safe in
    workers that were forked or spawned.

    Args:
        source: A folder, a ``.txt`` list, a ``.tar`` or ``.zip`` file, an LMDB database, or a folder of these
            archives; see :func:`dqcore.data.list_images`.
        preprocessing: ``"imagenet"``, ``"ffhq"``, ``"celebahq"`` or ``"lsun"``, what the paper does with this data set.
            None: whole images.
        size: Height and width of a crop in pixels, with ``preprocessing`` alone; by default 256. Whole images have
            their own; to make batches, theirs must agree.
        split: ``"training"`` or ``"validation"``, by the lists of FFHQ or CelebA-HQ in the source's folder or beside it
            (``ffhqtrain.txt`` and ``ffhqvalidation.txt``); by default all images.
        training: Random crops, where the paper has them; False cuts the middle square, as for evaluation. By default
            True, unless ``split`` is ``"validation"``.
        classes: Labels by folder, numbered in the order of their names; or those in the ``.cls`` files of ``.tar``
            shards.
        transform: Called with each crop, an RGB ``PIL.Image``; what it returns stands in the place of the tensor.
        fast_jpeg: Decode large JPEG files at a half, a quarter or an eighth of their size where twice the pixels that
            are needed remain: faster, and not quite the same pixels (``docs/data.md`` has the difference).

    Attributes:
        paths: The images, in their order; ``shard.tar::cat/1.jpg`` is one in an archive.
        names: What each is called in the source.
        labels: The class of each, or -1.
        classes: Names of the classes, by label.

    Raises:
        FileNotFoundError: There is no such source.
        InputError: It holds no image, or an argument is out of range. ``images[i]`` raises a ``BrokenImageError`` that
            names the file, if it cannot be read; ``dqcore data stats`` lists such files beforehand.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        preprocessing: Preprocessing | None = None,
        size: int | None = None,
        split: Literal["training", "validation"] | None = None,
        training: bool | None = None,
        classes: bool = False,
        transform: Callable[[Image.Image], Any] = image_to_tensor,
        fast_jpeg: bool = False,
    ) -> None:
        training = split != "validation" if training is None else training
        if preprocessing is None and size is not None:
            names = ", ".join(repr(name) for name in CROPS)
            raise InputError(
                f"size: expected one of {names} as preprocessing with it, for whole images keep their size"
            )
        self.crop = preprocess(preprocessing, 256 if size is None else size, training=training)
        source = Path(source)
        self.paths = list_images(source)
        if split is not None:
            self.paths = _part(source, self.paths, split)
        root = source_root(source)
        self.names = [image_name(path, root) for path in self.paths]
        self.labels, self.classes = image_labels(self.paths, self.names, classes)
        self.transform, self.fast_jpeg = transform, fast_jpeg

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_prepared(self.paths[index], self.crop, fast_jpeg=self.fast_jpeg)
        rng = random.Random(int(torch.randint(2**63 - 1, ())))
        return self.transform(self.crop.cut(image, rng)), self.labels[index]

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"Images({len(self)} images{classes}, {self.crop})"


def _part(source: Path, paths: list[Path], split: str) -> list[Path]:
    """The images of a part of a data set that has lists."""
    if split not in Split._fields:
        raise InputError(f"split: expected one of {', '.join(Split._fields)}, got {split!r}")
    lists = listed_split(source, paths)
    if lists is None:
        raise InputError(f"split: {source} has no lists of its images, such as {LISTS[0][0]} and {LISTS[0][1]}")
    return lists.training if split == "training" else lists.validation


def read_prepared(path: Path, crop: Crop, *, fast_jpeg: bool = False) -> Image.Image:
    """An image from which ``crop`` can cut.

    Raises:
        BrokenImageError: The file cannot be read, or is too narrow to be resized.
    """
    image = read_image(path, least_side=crop.least_side if fast_jpeg else None)
    with broken_as(path):
        return crop.prepare(image)
