"""A folder of images to codes on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import BrokenImageError, image_to_tensor, read_image
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
    ratio: float | None = None,
    num_codes: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Encode images at their own size, padded to the coarsest stride, and write codes and grain maps.

    Neighbours of one size go through the model together; the codes of an image do not depend on its neighbours.

    Args:
        model: A tokenizer in evaluation mode.
        paths: Names for the index, and files. Those that the writer holds already are passed over.
        writer: Where the codes go; broken files are noted there.
        ratio: Share of fine regions.
        num_codes: Codes of each image; not together with ``ratio``.
        batch_size: Images that go through the model together, at most.
        progress: Called with the number of files dealt with, now and then.
    """
    device = model.quantizer.codebook.weight.device
    done = writer.done
    todo = [(name, path) for name, path in paths if name not in done]
    finished = len(paths) - len(todo)
    for names, sizes, images in _batches(todo, writer, model.config.strides[0], batch_size):
        encoding = encode(model, images.to(device), ratio, num_codes)
        for name, size, codes, grain in zip(names, sizes, encoding.codes, encoding.grain, strict=True):
            writer.add(name, size, codes, grain)
        finished += len(names)
        if progress is not None:
            progress(finished)
    writer.flush()


def _batches(
    todo: Sequence[tuple[str, Path]], writer: ShardWriter, stride: int, batch_size: int
) -> Iterator[tuple[list[str], list[tuple[int, int]], Tensor]]:
    """Runs of images with one padded size: names, sizes before padding, ``(B, 3, H, W)``."""
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    images: list[Tensor] = []
    for name, path in todo:
        try:
            image = image_to_tensor(read_image(path))
        except BrokenImageError as error:
            writer.skip(name, str(error))
            continue
        padded = pad_to_stride(image[None], stride)[0]
        if images and (padded.shape != images[0].shape or len(images) == batch_size):
            yield names, sizes, torch.stack(images)
            names, sizes, images = [], [], []
        names.append(name)
        sizes.append((image.shape[1], image.shape[2]))
        images.append(padded)
    if images:
        yield names, sizes, torch.stack(images)
