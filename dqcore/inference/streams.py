"""Photos to ``.dqc`` files: one, or a folder of them with an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from dqcore.data.images import BrokenImageError, image_to_tensor, read_image
from dqcore.data.shards import INDEX, forget_broken, open_index
from dqcore.errors import InputError
from dqcore.files import write_atomically, write_json
from dqcore.inference.budget import Budget
from dqcore.inference.codec import Codec
from dqcore.inference.reconstruct import pad_to_stride
from dqcore.metrics.coding import bits_per_pixel
from dqcore.stream import read_header

__all__ = ["SUFFIX", "StreamFolder", "Written", "encode_photo", "encode_photos", "write_stream_file"]

SUFFIX = ".dqc"
_EVERY = 50  # photos after which the index is written


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
        self._files = {entry["file"] for entry in self.index["images"]}
        self._tokenizer = str(description.get("tokenizer", ""))
        if not (folder / INDEX).is_file():
            self.flush()  # says whose folder this is, so that a run that is killed at once can go on

    def add(self, name: str, digest: str, written: Written) -> None:
        """Write a photo's stream; it is named after the photo, with its ending where two are else called the same."""
        file = str(PurePosixPath(name).with_suffix(SUFFIX))
        if file in self._files:
            file = name + SUFFIX
        path = self.folder / file
        write_stream_file(path, written.data, overwrite=file not in self._files and self._is_ours(path))
        self._files.add(file)
        forget_broken(self.index, name)
        about = {"size": list(written.size), "bytes": len(written.data), "num_codes": written.num_codes}
        self.index["images"].append({"name": name, "file": file, "sha256": digest, **about})
        if len(self.index["images"]) % _EVERY == 0:
            self.flush()

    def _is_ours(self, path: Path) -> bool:
        """Whether a stream that the index lacks is of this tokenizer: that of a run that was killed."""
        try:
            header = read_header(path.read_bytes(), str(path))
        except (OSError, InputError):
            return False
        return self._tokenizer.startswith(header.model)

    def skip(self, name: str, reason: str, digest: str) -> None:
        """List a broken file in the index."""
        forget_broken(self.index, name)
        self.index["broken"].append({"name": name, "reason": reason, "sha256": digest})

    def flush(self) -> None:
        """Write the index."""
        write_json(self.folder / INDEX, self.index)


def encode_photos(
    codec: Codec,
    paths: Sequence[tuple[str, Path]],
    folder: StreamFolder,
    budget: Budget,
    digests: Mapping[str, str],
    *,
    written: Callable[[str, Written], object],
    failed: Callable[[str], object],
) -> None:
    """Encode photos to a folder; those that its index has are left as they are, broken ones are tried again.

    Args:
        codec: The tokenizer.
        paths: Names for the index, and files.
        folder: Takes the streams.
        budget: How large each may be.
        digests: Of each name, its file's :func:`dqcore.data.shards.hash_file`.
        written: Called after each photo with its name and what was written.
        failed: Called with the reason for each photo that could not be had within the budget; a later run tries again.
    """
    known = {entry["name"] for entry in folder.index["images"]}
    try:
        for name, path in paths:
            if name in known:
                continue
            try:
                result = encode_photo(codec, path, budget)
            except BrokenImageError as error:
                folder.skip(name, str(error), digests[name])
            except InputError as error:
                failed(f"{path}: {error}")
            else:
                folder.add(name, digests[name], result)
                written(name, result)
    finally:
        folder.flush()
