"""The codes of many images in memory, and batches of them by a budget of tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.errors import InputError
from dqcore.ops.pack_codes import pack_codes

__all__ = ["CachedCodes", "TokenBatches", "read_codes"]

#: Batches whose images are sorted by length together, so that the images of one batch are of like length.
WINDOW = 32


@dataclass(frozen=True)
class CachedCodes:
    """Packed codes of ``N`` images, 9 bytes a code.

    Attributes:
        codes: ``(T,)`` int32.
        positions: ``(T,)`` int32.
        grains: ``(T,)`` uint8.
        ends: Where each image begins, ``(N + 1,)`` int64.
        labels: Class of each image, -1 for none, ``(N,)`` int64.
        region_grid: Regions ``(h, w)`` of every image.
        num_granularities: ``G``.
        codebook_size: ``K``.
        tokenizer: Fingerprint of the tokenizer.
        classes: Names of the classes.
    """

    codes: Tensor
    positions: Tensor
    grains: Tensor
    ends: Tensor
    labels: Tensor
    region_grid: tuple[int, int]
    num_granularities: int
    codebook_size: int
    tokenizer: str = ""
    classes: tuple[str, ...] = ()

    @classmethod
    def of_maps(cls, maps: Iterable[tuple[Tensor, Tensor]], labels: Sequence[int], **about: Any) -> CachedCodes:
        """From batches of code maps ``(B, H, W)`` and grain maps ``(B, h, w)``; ``about`` holds the other fields.

        Raises:
            ValueError: There is no image, or they have different grids.
        """
        parts: list[CodeSequence] = []
        for codes, grain in maps:
            parts.append(pack_codes(codes.cpu(), grain.cpu(), num_granularities=about["num_granularities"]))
        grids = {part.region_grid for part in parts}
        if len(grids) != 1:
            raise InputError(f"codes: expected images of one size, got regions {sorted(grids) or 'of no image'}")
        lengths = torch.cat([part.lengths for part in parts]).long()
        return cls(
            torch.cat([part.codes for part in parts]).int(),
            torch.cat([part.positions for part in parts]).int(),
            torch.cat([part.grains for part in parts]).to(torch.uint8),
            torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            torch.tensor(labels, dtype=torch.int64),
            region_grid=grids.pop(),
            **about,
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Codes of each image, ``(N,)`` int64."""
        return self.ends.diff()

    def batch(self, images: Tensor) -> tuple[CodeSequence, Tensor]:
        """The codes of some images ``(n,)`` in this order, and their labels."""
        lengths = self.lengths[images]
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        where = torch.arange(int(ends[-1])) + (self.ends[images] - ends[:-1]).repeat_interleave(lengths)
        fields = (self.codes[where].long(), self.positions[where].long(), self.grains[where].long(), ends.int())
        return CodeSequence(*fields, self.region_grid, self.num_granularities), self.labels[images]

    def subset(self, images: Tensor) -> CachedCodes:
        """Some images only."""
        sequence, labels = self.batch(images)
        return CachedCodes(
            sequence.codes.int(),
            sequence.positions.int(),
            sequence.grains.to(torch.uint8),
            sequence.cu_seqlens.long(),
            labels,
            self.region_grid,
            self.num_granularities,
            self.codebook_size,
            self.tokenizer,
            self.classes,
        )

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values; :meth:`of_state` is the inverse."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in _FIELDS}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> CachedCodes:
        """From :meth:`to_state`."""
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v := state[n], list) else v for n in _FIELDS}
        return cls(**fields)


_FIELDS = tuple(CachedCodes.__dataclass_fields__)


def read_codes(folder: Path, *, classes: bool = False) -> CachedCodes:
    """The codes that ``dqcore encode`` wrote.

    Args:
        folder: Its ``index.json`` and shards.
        classes: Take the name of the folder that an image lay in as its class.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The index cannot be read, or the images differ in size.
    """
    from safetensors.torch import load_file

    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; dqcore encode writes one")
    try:
        index = json.loads(path.read_text())
        entries, identity = index["images"], index["tokenizer"]
        about = {"codebook_size": index["codebook_size"], "num_granularities": len(index["strides"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an index of codes ({error!r})") from error

    def maps() -> Iterator[tuple[Tensor, Tensor]]:
        shard, tensors = "", {}
        for number, entry in enumerate(entries):
            if entry["shard"] != shard:
                shard = entry["shard"]
                tensors = load_file(folder / shard)
            yield tensors[f"{number}.codes"].long()[None], tensors[f"{number}.grain"].long()[None]

    labels, names = folder_labels([entry["name"] for entry in entries], classes)
    return CachedCodes.of_maps(maps(), labels, tokenizer=identity, classes=names, **about)


def folder_labels(names: Sequence[str], classes: bool) -> tuple[list[int], tuple[str, ...]]:
    """A label for each file name, by the folder it lies in, and the names of the classes in alphabetical order.

    Raises:
        ValueError: A file lies in no folder.
    """
    if not classes:
        return [-1] * len(names), ()
    folders = [Path(name).parent.as_posix() for name in names]
    if "." in folders:
        raise InputError(f"classes: expected a folder for each class, {names[folders.index('.')]} lies in none")
    known = tuple(sorted(set(folders)))
    places = {name: place for place, name in enumerate(known)}
    return [places[name] for name in folders], known


class TokenBatches:
    """Batches of images as a pure function of (seed, step): as many images as fit in a budget of tokens.

    Within a window of batches images are sorted by length; windows and the batches in them come in random order, new in
    each epoch. No image is left out, and only the last batch of an epoch may be small.

    Args:
        lengths: Tokens of each image.
        budget: Tokens of a batch of one process; an image that alone exceeds it is a batch of its own.
        seed: Of the order.
        rank: This process.
        world: Number of processes; each takes every world-th batch.

    Raises:
        ValueError: There are fewer batches than processes.
    """

    def __init__(self, lengths: Tensor, budget: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.lengths, self.budget, self.seed, self.rank, self.world = lengths, budget, seed, rank, world
        if self.steps(0) == 0:
            raise InputError(f"token_budget: {budget} tokens hold more than {world} processes can share")

    def steps(self, epoch: int) -> int:
        """Steps of an epoch."""
        return len(self._plan(epoch)) // self.world

    def total(self, epochs: float) -> int:
        """Steps of so many epochs."""
        whole = sum(self.steps(epoch) for epoch in range(int(epochs)))
        return whole + round((epochs - int(epochs)) * self.steps(int(epochs)))

    def run(self, start: int, stop: int) -> Iterator[Tensor]:
        """Images of this process in steps ``start .. stop - 1``, ``(n,)`` int64 each."""
        epoch, first = 0, 0
        while first < stop:
            batches = self._plan(epoch)
            steps = len(batches) // self.world
            for step in range(max(start, first), min(stop, first + steps)):
                yield batches[(step - first) * self.world + self.rank]
            epoch, first = epoch + 1, first + steps

    def _plan(self, epoch: int) -> list[Tensor]:
        rng = random.Random(f"{self.seed}/{epoch}")
        gen = torch.Generator().manual_seed(rng.getrandbits(63))
        order = torch.randperm(len(self.lengths), generator=gen)
        mean = float(self.lengths.double().mean())
        window = max(1, int(WINDOW * self.budget / mean))
        batches: list[Tensor] = []
        for part in order.split(window):
            part = part[self.lengths[part].argsort(stable=True)]
            batches += self._cut(part)
        rng.shuffle(batches)
        return batches

    def _cut(self, images: Tensor) -> list[Tensor]:
        sizes, total = [0], 0
        for length in self.lengths[images].tolist():
            if total + length > self.budget and sizes[-1]:
                sizes.append(0)
                total = 0
            sizes[-1] += 1
            total += length
        return list(images.split(sizes))
