"""A new data set on disk: image files in a folder, or ``.tar`` shards, and an index that tells what they came from."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import IO, Any, Literal

from dqcore.data.making import Made
from dqcore.data.shards import INDEX, forget_broken, open_index
from dqcore.errors import InputError, whole_given
from dqcore.files import write_atomically
from dqcore.files.sealed import write_sealed

__all__ = ["DataWriter", "Packing"]

Packing = Literal["folder", "tar"]

#: The index is written when it has grown by this part, so that a large one is not written too often.
_GROWTH = 1 / 20
#: Files, one a line as JSON, that are written and not listed yet; it is gone when the index lists them.
_BEGUN = ".begun"


class DataWriter:
    """Writes image files, or shards ``shard-00000.tar``, ..., and ``index.json``.

    Files are written atomically, and before the index that lists them. What a killed run wrote and did not list is
    removed, because its images may be gone or changed; a file that holds something else is never replaced.

    Args:
        folder: Folder to write to.
        description: What the files depend on; it becomes part of the index.
        packing: ``"folder"`` or ``"tar"``.
        shard_size: Images in a shard.

    Raises:
        InputError: The folder holds a data set with another description, or other files; or ``shard_size`` is below 1.
    """

    def __init__(self, folder: Path, description: dict[str, Any], packing: Packing, shard_size: int = 1000) -> None:
        whole_given(1, shard_size=shard_size)
        self.folder, self.packing, self.shard_size = folder, packing, shard_size
        self.index = open_index(folder, {"packing": packing, **description}, "images")
        self._written = len(self.index["images"])
        self._shards = 1 + max(
            (int(entry["shard"][6:-4]) for entry in self.index["images"] if "shard" in entry), default=-1
        )
        self._waiting: list[Made] = []
        self._remove_begun()
        if not (folder / INDEX).is_file():
            write_sealed(folder / INDEX, self.index)  # says whose folder this is, so that a killed run can go on

    @property
    def done(self) -> set[str]:
        """Names of the images that the index lists; broken ones are tried again."""
        return {entry["name"] for entry in self.index["images"]}

    def add(self, made: Made) -> None:
        """Add what became of an image."""
        forget_broken(self.index, made.name)
        if made.reason:
            self.index["broken"].append({"name": made.name, "reason": made.reason, "sha256": made.digest})
            return
        self._waiting.append(made)
        if self.packing == "folder" or len(self._waiting) == self.shard_size:
            self._store()

    def flush(self) -> None:
        """Write what was added since the last shard, then the index."""
        self._store()
        self._written = len(self.index["images"])
        write_sealed(self.folder / INDEX, self.index)
        (self.folder / _BEGUN).unlink(missing_ok=True)

    def _store(self) -> None:
        if not self._waiting:
            return
        shard = {}
        if self.packing == "tar":
            shard = {"shard": f"shard-{self._shards:05d}.tar"}
            self._keep(shard["shard"], _packed(self._waiting))
            self._shards += 1
        else:
            for made in self._waiting:
                for name, data in made.files:
                    self._keep(name, data)
        for made in self._waiting:
            files = [name for name, _ in made.files]
            self.index["images"].append({"name": made.name, "sha256": made.digest, "files": files, **shard})
        self._waiting = []
        if len(self.index["images"]) - self._written > max(50, _GROWTH * self._written):
            self.flush()

    def _keep(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there with the same bytes."""
        path = self.folder / name
        if path.is_file() and path.read_bytes() == data:
            return
        if path.exists() or path.is_symlink():
            raise InputError(f"out: {path} is there already and holds something else; choose another folder")
        with open(self.folder / _BEGUN, "a") as begun:
            begun.write(f"{json.dumps(name)}\n")
            begun.flush()
            os.fsync(begun.fileno())

        def write(file: IO[bytes]) -> None:
            file.write(data)

        write_atomically(path, write)

    def _remove_begun(self) -> None:
        """Remove what a killed run wrote and did not list."""
        if not (self.folder / _BEGUN).is_file():
            return
        entries = self.index["images"]
        listed = {file for entry in entries for file in ([entry["shard"]] if "shard" in entry else entry["files"])}
        for line in (self.folder / _BEGUN).read_text().splitlines(keepends=True):
            if line.endswith("\n") and (name := json.loads(line)) not in listed:  # else the line itself was cut off
                (self.folder / name).unlink(missing_ok=True)
        (self.folder / _BEGUN).unlink()


def _packed(images: list[Made]) -> bytes:
    """A tar of these files; the same files give the same bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for made in images:
            for name, data in made.files:
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()
