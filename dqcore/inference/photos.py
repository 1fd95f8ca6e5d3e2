"""Photos to measure: what the user named, read one after the other as the protocol says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dqcore.data.archives import split_member
from dqcore.data.images import BrokenImageError, broken_as, image_to_tensor, read_image, readable_images
from dqcore.data.listing import is_collection, list_images
from dqcore.distributed import ALONE, World
from dqcore.errors import InputError
from dqcore.inference.protocol import NATIVE, Protocol

__all__ = ["PhotoBatches", "list_photos"]

#: Pixels of a batch, so that whole photographs go through a model one by one, and small pictures together.
BATCH_PIXELS = 1 << 20
#: Sides below this many pixels hold no window of SSIM.
LEAST_SIDE = 11


def list_photos(sources: Sequence[Path], argument: str = "images") -> list[Path]:
    """The files of images, folders, ``.txt`` lists and archives.

    Args:
        sources: Each an image file, or what :func:`dqcore.data.list_images` takes.
        argument: What the user named them by, for the messages.

    Returns:
        The files in the order of the sources; a file that was named twice comes once.

    Raises:
        InputError: No source, or a folder without images.
        FileNotFoundError: A source does not exist.
    """
    if not sources:
        raise InputError(f"{argument}: expected at least one file or folder")
    found: dict[Path, Path] = {}
    for source in sources:
        single = split_member(source) is not None or (source.is_file() and not is_collection(source))
        for path in [source] if single else list_images(source):
            found.setdefault(path.resolve(), path)
    return list(found.values())


class PhotoBatches:
    """Photos of one size together, ``(B, 3, H, W)`` in [-1, 1], in the order of their files; to iterate over once.

    Of several processes each gets its part of the photos, and must iterate to the end.

    Attributes:
        good: The files that could be read, of all processes, in their order; known after the last batch.
        broken: Why each of the others was passed over.
        order: For each of ``good``, its place among what one process after the other has read.

    Args:
        paths: Files of images.
        protocol: What of each photo is measured.
        batch_size: Images of a batch, at most; large photos come alone.
        argument: What the user named the files by, for the message if none can be read; None if that is no error.
        why_not: Called with height and width of what is measured of each photo; says why it is passed over, or nothing.
        progress: Called after each file with the number of files so far and the number of all, those of this process.
        world: The processes that share the photos.

    Raises:
        ValueError: While iterating: none of the files can be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        protocol: Protocol = NATIVE,
        *,
        batch_size: int = 8,
        argument: str | None = "images",
        why_not: Callable[[int, int], str] | None = None,
        progress: Callable[[int, int], object] | None = None,
        world: World = ALONE,
    ) -> None:
        self.good: list[Path] = []
        self.broken: list[str] = []
        self.order: list[int] = []
        self._all, self._paths = paths, paths[world.rank :: world.size]
        self.protocol, self._batch_size = protocol, batch_size
        self._argument, self._why_not, self._progress, self._world = argument, why_not, progress, world
        self._reasons: dict[Path, str] = {}
        self._read_so_far: list[Path] = []

    def __iter__(self) -> Iterator[Tensor]:
        images: list[Tensor] = []
        files: list[Path] = []
        for path, image in readable_images(self._paths, self._skip, read=self._read):
            pixels = image_to_tensor(image)
            if images and not self._fits(images, pixels):
                yield from self._batch(files, images)
                images, files = [], []
            images.append(pixels)
            files.append(path)
        if images:
            yield from self._batch(files, images)
        self._join()
        if self._argument is not None and not self.good:
            count, first = len(self._all), self.broken[0]
            raise InputError(f"{self._argument}: none of its {count} images can be read, the first: {first}")

    def _join(self) -> None:
        """Take in what the other processes have read."""
        found = self._world.gather((self._read_so_far, self._reasons))
        read = [path for some, _ in found for path in some]
        places = {path: place for place, path in enumerate(read)}
        reasons = {path: reason for _, some in found for path, reason in some.items()}
        self.good = [path for path in self._all if path in places]
        self.order = [places[path] for path in self.good]
        self.broken = [reasons[path] for path in self._all if path in reasons]

    def _fits(self, images: list[Tensor], image: Tensor) -> bool:
        area = (len(images) + 1) * image.shape[1] * image.shape[2]
        return image.shape == images[0].shape and len(images) < self._batch_size and area <= BATCH_PIXELS

    def _batch(self, files: list[Path], images: list[Tensor]) -> Iterator[Tensor]:
        self._read_so_far += files
        yield torch.stack(images)
        self._report()

    def _read(self, path: Path):  # type: ignore[no-untyped-def]
        with broken_as(path):
            image = self.protocol.prepare(read_image(path))
        if min(image.size) < LEAST_SIDE:
            raise BrokenImageError(f"{path}: {image.width}x{image.height} pixels are too few to measure")
        reason = "" if self._why_not is None else self._why_not(image.height, image.width)
        if reason:
            raise BrokenImageError(f"{path}: {reason}")
        return image

    def _skip(self, path: Path, reason: str) -> None:
        self._reasons[path] = reason
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(len(self._read_so_far) + len(self._reasons), len(self._paths))
