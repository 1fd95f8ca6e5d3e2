"""What a user names, loaded: trained tokenizers, and the images that they are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dqcore.backends import choose_device as pick_device
from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image, readable_images
from dqcore.errors import InputError
from dqcore.models.auto import TOKENIZERS, load_saved

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageBatches", "hash_files", "load_tokenizer", "pick_device"]


def load_tokenizer(path: Path, device: str = "auto") -> Any:
    """:func:`dqcore.models.auto.load_saved` for tokenizers, on a device of :func:`dqcore.backends.choose_device`."""
    return load_saved(path, TOKENIZERS).to(pick_device(device))


class ImageBatches:
    """Centre crops ``(B, 3, size, size)`` in [-1, 1] of the files that can be read, to iterate over once.

    Attributes:
        good: The files read so far, in their order.
        broken: Why each of the others was passed over.

    Args:
        paths: Files of images.
        size: Height and width of a crop in pixels.
        resize: Pixels of the shorter side before the crop; by default ``size``.
        batch_size: Images of a batch; the last may be smaller.
        limit: Stop after this many images that can be read.
        argument: What the user named the files by, for the message if none can be read.
        progress: Called after each file with the number of files so far and the number of all.

    Raises:
        ValueError: While iterating: none of the files can be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        resize: int | None = None,
        *,
        batch_size: int = 8,
        limit: int | None = None,
        argument: str = "paths",
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self.good: list[Path] = []
        self.broken: list[str] = []
        self._paths, self._crop = paths, CenterCrop(size, resize or size)
        self._batch_size, self._limit, self._argument, self._progress = batch_size, limit, argument, progress

    def __iter__(self) -> Iterator[Tensor]:
        images: list[Tensor] = []
        for path, image in readable_images(self._paths, self._skip, read=self._read):
            images.append(image_to_tensor(image))
            self.good.append(path)
            if len(images) == self._batch_size:
                yield torch.stack(images)
                images = []
            self._report()
            if len(self.good) == self._limit:
                break
        if images:
            yield torch.stack(images)
        if not self.good:
            count, first = len(self._paths), self.broken[0]
            raise InputError(f"{self._argument}: none of its {count} images can be read, the first: {first}")

    def _read(self, path: Path) -> Image:
        return self._crop.prepare(read_image(path))

    def _skip(self, path: Path, reason: str) -> None:
        self.broken.append(reason)
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(len(self.good) + len(self.broken), len(self._paths))


def hash_files(paths: Sequence[Path]) -> str:
    """A hash of the files' contents in their order, to tell whether two numbers were measured on the same images."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
