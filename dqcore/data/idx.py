"""IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dqcore.errors import InputError, whole_at_least

__all__ = ["FASHION_CLASSES", "export_idx", "read_idx", "read_idx_pair"]

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


def read_idx(path: str | Path) -> Tensor:
    """A uint8 tensor from an IDX file, gzipped or not.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no IDX file of bytes, or is longer or shorter than its header says.
    """
    path = Path(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: damaged gzip file ({error})") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise InputError(f"{path}: expected an IDX file of unsigned bytes")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != int(np.prod(shape)):
        raise InputError(f"{path}: the header says {shape}, there are {body.size} bytes")
    return torch.from_numpy(body.reshape(shape).copy())


def read_idx_pair(folder: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, h, w)`` uint8 and labels ``(N,)`` int64 of a folder of IDX files.

    Args:
        folder: Folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and so on, gzipped or not.
        split: ``"train"`` or ``"t10k"``.
    """
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        names = [f"{split}-{kind}", f"{split}-{kind}.gz"]
        path = next((Path(folder, name) for name in names if Path(folder, name).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder}: expected a file {names[0]} or {names[1]}")
        found.append(read_idx(path))
    images, labels = found
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} images but {len(labels)} labels")
    return images, labels.long()


def export_idx(
    folder: str | Path, out: Path, *, split: str = "train", classes: tuple[str, ...] = FASHION_CLASSES, limit: int = 0
) -> int:
    """Write the images as ``out/CLASS/NUMBER.png``, with 2 black pixels on each side (28 x 28 becomes 32 x 32).

    Args:
        folder: See :func:`read_idx_pair`.
        out: Folder to write to; it is made if it is missing.
        split: ``"train"`` or ``"t10k"``.
        classes: Name of each label.
        limit: Write only this many images, the first ones; 0 for all.

    Returns:
        Number of images written.
    """
    from PIL import Image

    whole_at_least(0, limit=limit)
    images, labels = read_idx_pair(folder, split)
    count = limit or len(images)
    for number, (image, label) in enumerate(zip(images[:count], labels[:count].tolist(), strict=True)):
        path = out / classes[label] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        Image.fromarray(padded.numpy()).save(path)
    return min(count, len(images))
