"""A folder of images to codes on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import image_to_tensor, readable_images
from dqcore.data.shards import ShardWriter
from dqcore.inference.measure import encode
from dqcore.inference.reconstruct import pad_to_stride

__all__ = ["encode_images"]


@torch.no_grad()
def encode_images(
    model: Any,
    paths: Sequence[tuple[str, Path]],
    writer: ShardWriter,
    *,
    digests: Mapping[str, str] = MappingProxyType({}),
    ratio: float | None = None,
    num_codes: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Encode images at their own size, padded to multiples of the coarsest stride, and write codes and grain maps.

    Consecutive images of one padded size go through the model together, which does not change their codes.

    Args:
        model: A tokenizer in evaluation mode.
        paths: Names for the index, and files. Files whose names the writer knows already are not read again.
        writer: Takes the codes, and the names of broken files.
        digests: Of each name, the :func:`dqcore.data.shards.hash_file` that the index keeps.
        ratio: Share of fine regions.
        num_codes: Codes of each image; not together with ``ratio``.
        batch_size: Images that go through the model together, at most.
        progress: Called after each batch with the number of files that are done. What it raises ends the work, and
            what was encoded so far is written.
    """
    device = model.quantizer.codebook.weight.device
    done = writer.done
    todo = [(name, path) for name, path in paths if name not in done]
    finished = len(paths) - len(todo)
    try:
        for names, sizes, images in _batches(todo, writer, digests, model.config.strides[0], batch_size):
            encoding = encode(model, images.to(device), ratio, num_codes)
            for name, size, codes, grain in zip(names, sizes, encoding.codes, encoding.grain, strict=True):
                writer.add(name, size, codes, grain, digests.get(name, ""))
            finished += len(names)
            if progress is not None:
                progress(finished)
    finally:
        writer.flush()  # whatever ends this, what was encoded is kept


def _batches(
    todo: Sequence[tuple[str, Path]], writer: ShardWriter, digests: Mapping[str, str], stride: int, batch_size: int
) -> Iterator[tuple[list[str], list[tuple[int, int]], Tensor]]:
    """Consecutive images of one padded size: names, sizes before padding, images ``(B, 3, H, W)``."""
    name_of = {path: name for name, path in todo}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    images: list[Tensor] = []
    files = [path for _, path in todo]

    def skip(path: Path, reason: str) -> None:
        writer.skip(name_of[path], reason, digests.get(name_of[path], ""))

    for path, picture in readable_images(files, skip):
        image = image_to_tensor(picture)
        padded = pad_to_stride(image[None], stride)[0]
        if images and (padded.shape != images[0].shape or len(images) == batch_size):
            yield names, sizes, torch.stack(images)
            names, sizes, images = [], [], []
        names.append(name_of[path])
        sizes.append((image.shape[1], image.shape[2]))
        images.append(padded)
    if images:
        yield names, sizes, torch.stack(images)
