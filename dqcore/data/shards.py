"""The codes of a folder of images on disk: safetensors files, called shards, and an index beside them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dqcore.data.listing import name_below
from dqcore.data.narrow import narrow_maps
from dqcore.data.stored import read_stored
from dqcore.errors import InputError, whole_given
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.files.tensors import load_tensors, save_tensors

__all__ = [
    "INDEX",
    "ShardWriter",
    "count_known",
    "file_digest",
    "forget_broken",
    "open_index",
    "read_index",
    "read_shards",
]

INDEX = "index.json"


class ShardWriter:
    """Writes ``codes-00000.safetensors``, ... and ``index.json``. A killed run continues after the last shard listed.

    A shard holds ``<i>.codes (H, W)`` int32 and ``<i>.grain (h, w)`` uint8 for image ``i`` of the index. Each file is
    written atomically, and a shard before the index that lists it.

    Args:
        folder: Folder to write to.
        description: What the codes depend on (tokenizer, images, options); it becomes part of the index.
        shard_size: Images in a shard.
        labels: What is written beside images, by name; images that an earlier run has encoded get theirs too.

    Raises:
        InputError: The folder holds codes with another description, or other files; or ``shard_size`` is below 1.
    """

    def __init__(
        self, folder: Path, description: dict[str, Any], *, shard_size: int = 1000, labels: dict[str, str] | None = None
    ) -> None:
        whole_given(1, shard_size=shard_size)
        self.folder, self.shard_size, self._labels = folder, shard_size, labels or {}
        self.index = open_index(folder, description)
        for entry in self.index["images"]:
            name = entry["name"] = name_below(entry["name"])  # earlier versions kept the way up to it
            entry.update(_known_by("", self._labels.get(name, "")))
        self._tensors: dict[str, Tensor] = {}
        self._entries: list[dict[str, Any]] = []
        listed = {entry["shard"] for entry in self.index["images"]}
        if lost := sorted(shard for shard in listed if not (folder / shard).is_file()):
            raise InputError(f"out: {folder} lacks {lost[0]}, which its {INDEX} lists; choose another folder")
        self._shards = len(listed)
        self._index_due = 0.0  # by the clock of time.monotonic
        if not (folder / INDEX).is_file():
            self.flush()  # says whose folder this is, so that a run that is killed in its first shard can go on

    @property
    def done(self) -> set[str]:
        """Names of the images that are in a shard on disk; those that were found broken are tried again."""
        return {entry["name"] for entry in self.index["images"]}

    def add(self, name: str, size: Sequence[int], codes: Tensor, grain: Tensor, digest: str = "") -> None:
        """Add an image; a full shard is written at once. If it was listed as broken, it no longer is.

        Args:
            name: Its name in the index.
            size: Its ``(height, width)`` before padding.
            codes: Code map ``(H, W)``, values from 0 to 2**31 - 1; others are an :class:`InputError`.
            grain: Grain map ``(h, w)``.
            digest: Its :func:`file_digest`, by which a later run knows it.
        """
        codes, grain = narrow_maps(codes, grain)
        forget_broken(self.index, name)
        number = len(self.index["images"]) + len(self._entries)
        self._tensors |= {f"{number}.codes": codes, f"{number}.grain": grain}
        self._entries.append(
            {
                "name": name,
                "size": list(size),
                "codes_shape": list(codes.shape),
                "grain_shape": list(grain.shape),
                "num_codes": int((4 ** grain.long()).sum()),
                "shard": self._shard_name(),
                **_known_by(digest, self._labels.get(name, "")),
            }
        )
        if len(self._entries) == self.shard_size:
            self._write_shard()
            if time.monotonic() >= self._index_due:
                self._write_index()

    def skip(self, name: str, reason: str, digest: str = "") -> None:
        """List a broken file in the index."""
        forget_broken(self.index, name)
        self.index["broken"].append({"name": name, "reason": reason, **_known_by(digest)})

    def flush(self) -> None:
        """Write the images added since the last shard as a shard, then the index."""
        self._write_shard()
        self._write_index()

    def _write_shard(self) -> None:
        if self._entries:
            save_tensors(self.folder / self._shard_name(), self._tensors)
            self.index["images"] += self._entries
            self._tensors, self._entries = {}, []
            self._shards += 1

    def _write_index(self) -> None:
        """Write all of the index. A large one is due again when 20 times as long as this took is over."""
        start = time.monotonic()
        write_sealed(self.folder / INDEX, self.index)
        now = time.monotonic()
        self._index_due = now + 20 * (now - start) if now - start > 0.1 else now

    def _shard_name(self) -> str:
        return f"codes-{self._shards:05d}.safetensors"


def open_index(folder: Path, description: dict[str, Any], what: str = "codes") -> dict[str, Any]:
    """The index of a folder that codes are to be added to: that of an earlier run, or a new one.

    Args:
        folder: The folder.
        description: What the codes depend on.
        what: What the folder holds, for the message.

    Raises:
        InputError: The folder holds codes with another description, or other files.
    """
    if not (folder / INDEX).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"out: {folder} is not empty and holds no {INDEX}; choose another folder")
        return {**description, "images": [], "broken": []}
    try:
        before = read_index(folder)
    except InputError as error:
        raise InputError(f"out: {folder / INDEX} cannot be read ({error})") from error
    for name, value in {"format": None, **description}.items():
        if before.get(name) != value:
            raise InputError(
                f"out: {folder} holds {what} of another {name} ({before.get(name)}); choose another folder"
            )
    return before


def count_known(index: dict[str, Any], digests: Mapping[str, str], folder: Path, what: str = "codes") -> int:
    """How many of some files, given by name with their :func:`file_digest`, an index has already.

    Args:
        index: The index.
        digests: Of each name.
        folder: The index's folder.
        what: What it holds, for the message.

    Raises:
        InputError: A name in the index belongs to another file.
    """
    known = {entry["name"]: entry.get("sha256", "") for entry in index["images"]}
    shared = [name for name in digests if name in known]
    others = [name for name in shared if known[name] and digests[name] and known[name] != digests[name]]
    if others:
        count = f"{len(others)} of its {len(known)} names"
        raise InputError(
            f"out: {folder} holds the {what} of another {others[0]} ({count} belong to other files); "
            "choose another folder"
        )
    return len(shared)


def forget_broken(index: dict[str, Any], name: str) -> None:
    """Take a file off the list of broken ones: it is tried again."""
    index["broken"] = [entry for entry in index["broken"] if entry["name"] != name]


def _known_by(digest: str, label: str = "") -> dict[str, str]:
    return {key: text for key, text in (("sha256", digest), ("label", label)) if text}


def file_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes; empty if it cannot be read, or is a pipe."""
    try:
        return hashlib.sha256(read_stored(path)).hexdigest()[:16]
    except (OSError, InputError):
        return ""


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of shards: the writer's ``description``, ``"images"`` and ``"broken"``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; dqcore encode writes one")
    try:
        index: Any = read_sealed(path)
    except ValueError as error:
        raise InputError(f"{path}: expected an index of codes ({error})") from error
    if not isinstance(index, dict):
        raise InputError(f"{path}: expected an index of codes (got a JSON {type(index).__name__})")
    for name, default in (("images", None), ("broken", [])):
        entries = index.get(name, default)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
            raise InputError(f"{path}: expected an index of codes (its {name} are no list of files)")
    index.setdefault("broken", [])
    return index


def read_shards(folder: Path, index: dict[str, Any] | None = None) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """Every image of a folder of shards, in the index's order; one shard is in memory at a time.

    Args:
        folder: A folder that :class:`ShardWriter` wrote.
        index: Its :func:`read_index`, if the caller has read it already.

    Yields:
        The image's entry in the index, its code map ``(H, W)`` int64 and its grain map ``(h, w)`` int64.

    Raises:
        FileNotFoundError: A shard is missing.
        InputError: A shard or the index is damaged, or the one does not belong to the other.
    """
    shard, tensors = "", {}
    for number, entry in enumerate((index or read_index(folder))["images"]):
        try:
            if entry["shard"] != shard:
                shard = entry["shard"]
                tensors = load_tensors(folder / shard)
            codes, grain = (tensors[f"{number}.{kind}"].long() for kind in ("codes", "grain"))
            fits = codes.dim() == grain.dim() == 2 and list(codes.shape) == entry.get("codes_shape", list(codes.shape))
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}: its index does not belong to its shards ({error!r})") from error
        if not fits:
            raise InputError(f"{folder / shard}: image {number} is not the one of the index")
        yield entry, codes, grain
