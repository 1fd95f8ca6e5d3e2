"""Images to shards: the codes of a whole folder together, as training a prior reads them.

The way to streams, a file for each photo, is :mod:`dqcore.inference.encode_streams`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import BrokenImageError, image_to_tensor, pad_to_stride, read_image
from dqcore.data.shards import ShardWriter, file_digest
from dqcore.distributed import ALONE, World
from dqcore.distributed.sharing import Signals, share_work
from dqcore.inference.encode_batch import encode, why_not

__all__ = ["encode_images", "hash_photos"]

Named = Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class _Encoded:
    """An image's codes, as small as they are stored; or why it has none."""

    name: str
    size: tuple[int, int] = (0, 0)
    codes: Tensor | None = None
    grain: Tensor | None = None
    broken: str = ""


def encode_images(
    model: Any,
    paths: Named,
    writer: ShardWriter | None,
    *,
    digests: Mapping[str, str] = MappingProxyType({}),
    ratio: float | None = None,
    num_codes: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], object] | None = None,
    world: World = ALONE,
    signals: Signals | None = None,
) -> None:
    """Encode images at their own size, padded to multiples of the coarsest stride, and write codes and grain maps.

    Neighbours of one padded size go through the model together, which does not change their codes. Several processes
    share the images; the first one writes, and what it writes does not depend on their number.

    Args:
        model: A tokenizer in evaluation mode.
        paths: Names for the index, and files. Files whose names the writer knows already are not read again.
        writer: Takes the codes, and the names of broken files; only the first process needs one.
        digests: Of each name, the :func:`dqcore.data.shards.file_digest` that the index keeps.
        ratio: Share of fine regions.
        num_codes: Codes of each image; not together with ``ratio``.
        batch_size: Images that go through the model together, at most.
        progress: Called after each batch with the number of files that are done. What it raises ends the work, and
            what was encoded so far is written.
        world: The processes that share the images; every one calls this.
        signals: Where a process was told to stop, all stop after their present images.
    """
    done = world.of_first(None if writer is None else writer.done)
    todo = [(name, path) for name, path in paths if name not in done]
    finished = len(paths) - len(todo)
    pieces = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    try:
        for results in share_work(world, pieces, lambda piece: _encode(model, piece, ratio, num_codes), signals):
            assert writer is not None
            for result in results:
                _write(writer, result, digests.get(result.name, ""))
            finished += len(results)
            if progress is not None:
                progress(finished)
    finally:
        if writer is not None:
            writer.flush()  # whatever ends this, what was encoded is kept


def hash_photos(named: Named, world: World = ALONE) -> dict[str, str]:
    """:func:`dqcore.data.shards.file_digest` of each file, by its name; every process reads its part of them."""
    mine = {name: file_digest(path) for name, path in named[world.rank :: world.size]}
    everyone = {name: digest for part in world.gather(mine) for name, digest in part.items()}
    return {name: everyone[name] for name, _ in named}


def _write(writer: ShardWriter, result: _Encoded, digest: str) -> None:
    if result.codes is None or result.grain is None:
        writer.skip(result.name, result.broken, digest)
    else:
        writer.add(result.name, result.size, result.codes, result.grain, digest)


@torch.no_grad()
def _encode(model: Any, piece: Named, ratio: float | None, num_codes: int | None) -> list[_Encoded]:
    """The codes of a few images, in their order."""
    broken: dict[str, str] = {}
    found: dict[str, _Encoded] = {}
    for names, sizes, images in _batches(piece, model.config.strides[0], broken):
        if reason := why_not(model.config, *images.shape[2:], num_codes=num_codes, streams=False):
            broken |= {name: f"{dict(piece)[name]}: {reason}" for name in names}
            continue
        encoding = encode(model, images.to(model.quantizer.codebook.weight.device), ratio, num_codes)
        codes, grains = encoding.codes.to("cpu", torch.int32), encoding.grain.to("cpu", torch.uint8)
        for name, size, code, grain in zip(names, sizes, codes, grains, strict=True):
            # Cloned, because pickling a view sends the whole batch.
            found[name] = _Encoded(name, size, code.clone(), grain.clone())
    return [found[name] if name in found else _Encoded(name, broken=broken[name]) for name, _ in piece]


def _batches(
    piece: Named, stride: int, broken: dict[str, str]
) -> Iterator[tuple[list[str], list[tuple[int, int]], Tensor]]:
    """Neighbours of one padded size: names, sizes before padding, images ``(B, 3, H, W)``; ``broken`` takes others."""
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    images: list[Tensor] = []
    for name, path in piece:  # kept by name: a folder and a folder in it may name one file twice
        try:
            image = image_to_tensor(read_image(path))
        except BrokenImageError as error:
            broken[name] = str(error)
            continue
        padded = pad_to_stride(image[None], stride)[0]
        if images and padded.shape != images[0].shape:
            yield names, sizes, torch.stack(images)
            names, sizes, images = [], [], []
        names.append(name)
        sizes.append((image.shape[1], image.shape[2]))
        images.append(padded)
    if images:
        yield names, sizes, torch.stack(images)
