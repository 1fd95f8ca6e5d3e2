"""Photos to ``.dqc`` files: one, or a folder of them with an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from dqcore.data.images import BrokenImageError, image_to_tensor, pad_to_stride, read_image
from dqcore.data.listing import files_for
from dqcore.data.shards import INDEX, forget_broken, open_index
from dqcore.distributed import ALONE, World
from dqcore.distributed.sharing import Signals, share_work
from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.files.sealed import write_sealed
from dqcore.inference.budget import Budget
from dqcore.inference.codec import Codec
from dqcore.metrics.coding import bits_per_pixel

__all__ = ["SUFFIX", "StreamFolder", "Written", "encode_photo", "encode_photos", "write_stream_file"]

SUFFIX = ".dqc"
_LEAST = 50  # photos between two times that the index is written


@dataclass(frozen=True)
class Written:
    """A photo's stream.

    Attributes:
        data: The stream.
        size: Height and width of the photo in pixels.
        num_codes: Its codes.
        estimate: Bits per pixel without entropy coding, see :func:`dqcore.metrics.bits_per_pixel`.
        finest: Whether every region has the finest granularity: there is no longer stream of this photo.
    """

    data: bytes
    size: tuple[int, int]
    num_codes: int
    estimate: float
    finest: bool

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the stream, as written, for each pixel of the photo."""
        return 8 * len(self.data) / (self.size[0] * self.size[1])


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


def write_stream_file(path: Path, data: bytes, *, overwrite: bool = False) -> bool:
    """Write a stream to a file.

    Returns:
        Whether it was written; False where the file holds the same bytes already.

    Raises:
        InputError: The file is there and holds something else. ``overwrite`` allows another stream, nothing else.
    """
    if path.exists():
        before = path.read_bytes()
        if before == data:
            return False
        if before[:3] != b"dqc":
            raise InputError(f"out: {path} is there and is no .dqc stream; choose another name")
        if not overwrite:
            raise InputError(f"out: {path} holds another stream; choose another name, or allow it with --overwrite")
    write_atomically(path, lambda file: file.write(data))
    return True


class StreamFolder:
    """A folder of streams and ``index.json``, which says which photo each belongs to.

    Args:
        folder: Folder to write to.
        description: What the streams depend on; it becomes part of the index.

    Raises:
        InputError: The folder holds streams with another description, or other files.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.index = folder, open_index(folder, {"format": "dqc", **description})
        listed = {entry["file"] for entry in self.index["images"]}
        self.index["images"] = [entry for entry in self.index["images"] if self._is_whole(entry)]
        self._files = {entry["file"] for entry in self.index["images"]}
        self._folders: set[str] = set()
        self._begun = listed - self._files | set(self.index.get("begun", ()))  # ours, but lost or perhaps cut off
        self._next_flush = 0
        if not (folder / INDEX).is_file():
            self.flush()  # says whose folder this is, so that a run that is killed at once can go on

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        """Whether a stream is still there, and as long as it was; if not, its photo is encoded again."""
        path = self.folder / entry["file"]
        return path.is_file() and path.stat().st_size == entry["bytes"]

    def expect(self, names: Iterable[str]) -> None:
        """Note which photos will come: no stream may stand where a folder of theirs goes."""
        self._folders |= {str(folder) for name in names for folder in PurePosixPath(name).parents}

    def place(self, name: str) -> str:
        """The file for the stream of ``a.png``: the first free one of ``a.dqc``, ``a.png.dqc``, ``a.png-2.dqc``, ..."""
        file = next(file for file in files_for(name, SUFFIX) if self._is_free(file))
        self._files.add(file)
        return file

    def _is_free(self, file: str) -> bool:
        taken = file in self._files or file in self._folders
        return not taken and (file in self._begun or not (self.folder / file).exists())

    def begin(self, files: Sequence[str]) -> None:
        """Note which files will be written, so that a run that goes on after a kill knows them as its own."""
        self.index["begun"] = list(files)
        self.flush()

    def end(self) -> None:
        """Write the index. Files that were begun and exist but are not listed stay noted: they are of this run."""
        listed = {entry["file"] for entry in self.index["images"]}
        left = [file for file in self.index.pop("begun") if file not in listed and (self.folder / file).exists()]
        if left:
            self.index["begun"] = left
        self.flush()

    def add(self, name: str, file: str, digest: str, written: Written) -> None:
        """List a photo's stream, which was written to the file that :meth:`place` gave."""
        forget_broken(self.index, name)
        about = {"size": list(written.size), "bytes": len(written.data), "num_codes": written.num_codes}
        self.index["images"].append({"name": name, "file": file, "sha256": digest, **about})
        if len(self.index["images"]) >= self._next_flush:
            self.flush()

    def skip(self, name: str, reason: str, digest: str) -> None:
        """List a broken file in the index."""
        forget_broken(self.index, name)
        self.index["broken"].append({"name": name, "reason": reason, "sha256": digest})

    def flush(self) -> None:
        """Write the index, and choose after how many photos to write it again: so many that it takes little time."""
        write_sealed(self.folder / INDEX, self.index)
        listed = len(self.index["images"])
        self._next_flush = listed + max(_LEAST, listed // 20)


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
