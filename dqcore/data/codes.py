"""The codes of many images in memory, for the training of a prior."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.data.labels import labels_of
from dqcore.data.narrow import narrowed
from dqcore.data.shards import INDEX, read_index, read_shards
from dqcore.errors import InputError
from dqcore.ops.pack_codes import pack_codes

__all__ = ["CachedCodes", "read_codes"]


@dataclass(frozen=True)
class CachedCodes:
    """The codes of ``N`` images, ``T`` in all, packed image after image; 9 bytes a code.

    Attributes:
        codes: ``(T,)`` int32.
        positions: ``(T,)`` int32.
        grains: Granularity of each code, ``(T,)`` uint8.
        ends: Image i has the codes ``ends[i] .. ends[i + 1] - 1``; ``(N + 1,)`` int64.
        labels: Class of each image, -1 for none, ``(N,)`` int64.
        region_grid: Regions ``(h, w)`` of every image; all have the same.
        num_granularities: ``G``.
        codebook_size: ``K``.
        tokenizer: Fingerprint of the tokenizer that made the codes.
        classes: Names of the classes, by label.
        names: File of each image, in its first view; empty if they are not known.
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
    names: tuple[str, ...] = ()

    @classmethod
    def of_maps(cls, maps: Iterable[tuple[Tensor, Tensor]], labels: Sequence[int], **about: Any) -> CachedCodes:
        """Pack code maps and grain maps.

        Args:
            maps: Batches of code maps ``(B, H, W)`` and grain maps ``(B, h, w)``.
            labels: Class of each image, -1 for none.
            about: The attributes from ``num_granularities`` on.

        Raises:
            InputError: There is no image, two images have different grids, or a code is not in the codebook.
        """
        parts: list[CodeSequence] = []
        for codes, grain in maps:
            parts.append(pack_codes(codes.cpu(), grain.cpu(), num_granularities=about["num_granularities"]))
        grids = {part.region_grid for part in parts}
        if len(grids) != 1:
            raise InputError(f"codes: expected images of one size, got regions {sorted(grids) or 'of no image'}")
        lengths = torch.cat([part.lengths for part in parts]).long()
        return cls(
            narrowed(torch.cat([part.codes for part in parts]), torch.int32, about["codebook_size"], name="codes"),
            narrowed(torch.cat([part.positions for part in parts]), torch.int32, name="positions"),
            narrowed(torch.cat([part.grains for part in parts]), torch.uint8, name="grains"),
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
        """The codes and the labels ``(n,)`` of some images, given by their numbers ``(n,)``, in this order."""
        lengths = self.lengths[images]
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        where = torch.arange(int(ends[-1])) + (self.ends[images] - ends[:-1]).repeat_interleave(lengths)
        fields = (self.codes[where].long(), self.positions[where].long(), self.grains[where].long(), ends.int())
        return CodeSequence(*fields, self.region_grid, self.num_granularities), self.labels[images]

    def to_state(self) -> dict[str, Any]:
        """The attributes as tensors and plain values; :meth:`of_state` is the inverse."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in _FIELDS}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> CachedCodes:
        """The codes that :meth:`to_state` was called on."""
        known = [name for name in _FIELDS if name in state]
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v := state[n], list) else v for n in known}
        return cls(**fields)


_FIELDS = tuple(CachedCodes.__dataclass_fields__)


def read_codes(folder: Path, *, classes: bool = False) -> CachedCodes:
    """The codes that ``dqcore encode`` wrote.

    Args:
        folder: Folder of the index and the shards.
        classes: Take the label that stood beside an image as its class, or else the name of the folder that it lay in.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The index cannot be read, or the images differ in size.
    """
    index = read_index(folder)
    if index.get("format") == "dqc":
        raise InputError(
            f"codes: {folder} holds .dqc files, expected shards, as dqcore encode --format shards writes them"
        )
    try:
        names, identity = [entry["name"] for entry in index["images"]], index["tokenizer"]
        about = {"codebook_size": index["codebook_size"], "num_granularities": len(index["strides"])}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / INDEX}: expected an index of codes, as dqcore encode writes it, got none"
        ) from error
    written = [str(entry.get("label", "")) for entry in index["images"]] if classes else []
    labels, class_names = labels_of(written, names, classes)
    maps = ((codes[None], grain[None]) for _, codes, grain in read_shards(folder, index))
    return CachedCodes.of_maps(maps, labels, tokenizer=identity, classes=class_names, names=tuple(names), **about)
