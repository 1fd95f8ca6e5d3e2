"""Photos to ``.dqc`` streams, a file each: :func:`encode_photo` makes one, :func:`encode_photos` a folder of them.

The way to shards of codes is :mod:`dqcore.inference.encode_shards`; the way back :mod:`dqcore.inference.decode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dqcore.data.images import BrokenImageError, image_to_tensor, pad_to_stride, read_image
from dqcore.distributed import ALONE, World
from dqcore.distributed.sharing import Signals, share_work
from dqcore.errors import InputError
from dqcore.inference.budget import Budget
from dqcore.inference.codec import Codec
from dqcore.inference.stream_file import Written, write_stream_file
from dqcore.inference.stream_folder import StreamFolder
from dqcore.metrics.coding import bits_per_pixel

__all__ = ["encode_photo", "encode_photos"]


@torch.no_grad()
def encode_photo(codec: Codec, path: Path, budget: Budget) -> Written:
    """One photo as a stream, padded to the coarsest stride.

    Raises:
        BrokenImageError: The file cannot be read.
        InputError: It cannot be had within the budget.
    """
    image, config = image_to_tensor(read_image(path)), codec.model.config
    size = image.shape[1], image.shape[2]
    padded = pad_to_stride(image[None], config.strides[0]).to(codec.model.quantizer.codebook.weight.device)
    coded = budget.encode(codec, padded, size)
    grain, pixels = coded.grain[None], size[0] * size[1]
    estimate = float(bits_per_pixel(grain, config.codebook_size, config.num_granularities, pixels))
    finest = int(grain.min()) == config.num_granularities - 1
    return Written(coded.data, size, int((4**grain).sum()), estimate, finest)


class _Task(NamedTuple):
    """A photo to encode, and where its stream goes."""

    name: str
    photo: Path
    file: str
    target: Path


class _Result(NamedTuple):
    """What came of a photo: a stream that was written, a broken file, or one that the budget does not allow."""

    task: _Task
    written: Written | None = None
    broken: str = ""
    failed: str = ""


def encode_photos(
    codec: Codec,
    paths: Sequence[tuple[str, Path]],
    folder: StreamFolder | None,
    budget: Budget,
    digests: Mapping[str, str],
    *,
    written: Callable[[str, Written], object],
    failed: Callable[[str], object],
    world: World = ALONE,
    signals: Signals | None = None,
) -> None:
    """Encode photos to a folder; those that its index has are left as they are, broken ones are tried again.

    Several processes share the photos, and each writes its streams; the first one keeps the index.

    Args:
        codec: The tokenizer.
        paths: Names for the index, and files.
        folder: Takes the streams, never in the place of a file that it did not write; only the first process needs it.
        budget: How large each may be.
        digests: Of each name, its file's :func:`dqcore.data.shards.file_digest`.
        written: Called in the first process after each photo with its name and what was written.
        failed: Called in the first process with the reason for each photo that could not be had within the budget; a
            later run tries again.
        world: The processes that share the photos; every one calls this.
        signals: Where a process was told to stop, all stop after their present photos.
    """
    tasks = world.of_first(None if folder is None else _tasks(folder, paths))
    if folder is not None:
        folder.begin([task.file for task in tasks])
    try:
        for result in share_work(world, tasks, lambda task: _encode_to_file(codec, task, budget), signals):
            assert folder is not None
            task = result.task
            if result.failed:
                failed(result.failed)
            elif result.written is None:
                folder.skip(task.name, result.broken, digests[task.name])
            else:
                folder.add(task.name, task.file, digests[task.name], result.written)
                written(task.name, result.written)
    finally:
        if folder is not None:
            folder.end()


def _tasks(folder: StreamFolder, paths: Sequence[tuple[str, Path]]) -> list[_Task]:
    """The photos that the index lacks; files are named before any is written, so that no process names two alike."""
    known = {entry["name"] for entry in folder.index["images"]}
    folder.expect(name for name, _ in paths)
    placed = [(name, path, folder.place(name)) for name, path in paths if name not in known]
    return [_Task(name, path, file, folder.folder / file) for name, path, file in placed]


def _encode_to_file(codec: Codec, task: _Task, budget: Budget) -> _Result:
    try:
        result = encode_photo(codec, task.photo, budget)
    except BrokenImageError as error:
        return _Result(task, broken=str(error))
    except InputError as error:
        return _Result(task, failed=f"{task.photo}: {error}")
    write_stream_file(task.target, result.data, overwrite=True)  # a file that is there was left by a killed run
    return _Result(task, result)
