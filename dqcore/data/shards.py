"""Codes of a folder of images in safetensors shards, with an index beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.files import write_atomically, write_json

__all__ = ["INDEX", "ShardWriter", "read_shards"]

INDEX = "index.json"


class ShardWriter:
    """Writes ``codes-00000.safetensors``, ... and ``index.json``; a killed run goes on where the last shard ended.

    A shard holds ``<i>.codes (H, W)`` int32 and ``<i>.grain (h, w)`` uint8 for image ``i`` of the index. All files
    are written atomically, the index last.

    Args:
        folder: Where to write.
        description: What the codes depend on (tokenizer, source, options); stored in the index.
        shard_size: Images in a shard.

    Raises:
        ValueError: the folder holds codes made from something else.
    """

    def __init__(self, folder: Path, description: dict[str, Any], *, shard_size: int = 1000) -> None:
        self.folder, self.shard_size = folder, shard_size
        self.index: dict[str, Any] = {**description, "images": [], "broken": []}
        self._tensors: dict[str, Tensor] = {}
        self._entries: list[dict[str, Any]] = []
        if (folder / INDEX).is_file():
            self._resume(description)
        elif folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"out: {folder} is not empty and holds no {INDEX}; choose another folder")

    @property
    def done(self) -> set[str]:
        """Names of the images that shards on disk hold, or that were found broken."""
        return {entry["name"] for entry in self.index["images"]} | {entry["name"] for entry in self.index["broken"]}

    def add(self, name: str, size: Sequence[int], codes: Tensor, grain: Tensor) -> None:
        """Add an image: its name, its ``(height, width)`` before padding, code map ``(H, W)``, grain map ``(h, w)``."""
        number = len(self.index["images"]) + len(self._entries)
        self._tensors[f"{number}.codes"] = codes.to("cpu", torch.int32).contiguous()
        self._tensors[f"{number}.grain"] = grain.to("cpu", torch.uint8).contiguous()
        self._entries.append(
            {
                "name": name,
                "size": list(size),
                "codes_shape": list(codes.shape),
                "grain_shape": list(grain.shape),
                "num_codes": int((4 ** grain.long()).sum()),
                "shard": self._shard_name(),
            }
        )
        if len(self._entries) == self.shard_size:
            self.flush()

    def skip(self, name: str, reason: str) -> None:
        """Note a broken file."""
        self.index["broken"].append({"name": name, "reason": reason})

    def flush(self) -> None:
        """Write what has been added as a shard, then the index."""
        if self._entries:
            from safetensors.torch import save

            data = save(self._tensors)
            write_atomically(self.folder / self._shard_name(), lambda file: file.write(data))
            self.index["images"] += self._entries
            self._tensors, self._entries = {}, []
        write_json(self.folder / INDEX, self.index)

    def _shard_name(self) -> str:
        number = len({entry["shard"] for entry in self.index["images"]})
        return f"codes-{number:05d}.safetensors"

    def _resume(self, description: dict[str, Any]) -> None:
        try:
            before = json.loads((self.folder / INDEX).read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"out: {self.folder / INDEX} cannot be read ({error})") from error
        for name, value in description.items():
            if before.get(name) != value:
                raise InputError(f"out: {self.folder} holds codes of another {name} ({before.get(name)})")
        self.index = before


def read_shards(folder: Path) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
    """Every image of a folder of shards: its index entry, code map ``(H, W)`` and grain map ``(h, w)``, both int64."""
    from safetensors.torch import load_file

    index = json.loads((folder / INDEX).read_text())
    shards = {name: load_file(folder / name) for name in {entry["shard"] for entry in index["images"]}}
    return [
        (entry, shards[entry["shard"]][f"{number}.codes"].long(), shards[entry["shard"]][f"{number}.grain"].long())
        for number, entry in enumerate(index["images"])
    ]
