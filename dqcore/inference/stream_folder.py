"""A folder of streams: ``index.json`` says which photo each is of, so that a run that was cut off can go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dqcore.data.listing import files_for
from dqcore.data.shards import INDEX, forget_broken, open_index
from dqcore.files.sealed import write_sealed
from dqcore.inference.stream_file import SUFFIX, Written

__all__ = ["StreamFolder"]

_LEAST = 50  # photos between two times that the index is written


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
        listed = {entry["file"] for entry in self.index["images"]}
        self.index["images"] = [entry for entry in self.index["images"] if self._is_whole(entry)]
        self._files = {entry["file"] for entry in self.index["images"]}
        self._folders: set[str] = set()
        self._begun = listed - self._files | set(self.index.get("begun", ()))  # ours, but lost or perhaps cut off
        self._next_flush = 0
        if not (folder / INDEX).is_file():
            self.flush()  # says whose folder this is, so that a run that is killed at once can go on

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        """Whether a stream is still there, and as long as it was; if not, its photo is encoded again."""
        path = self.folder / entry["file"]
        return path.is_file() and path.stat().st_size == entry["bytes"]

    def expect(self, names: Iterable[str]) -> None:
        """Note which photos will come: no stream may stand where a folder of theirs goes."""
        self._folders |= {str(folder) for name in names for folder in PurePosixPath(name).parents}

    def place(self, name: str) -> str:
        """The file for the stream of ``a.png``: the first free one of ``a.dqc``, ``a.png.dqc``, ``a.png-2.dqc``, ..."""
        file = next(file for file in files_for(name, SUFFIX) if self._is_free(file))
        self._files.add(file)
        return file

    def _is_free(self, file: str) -> bool:
        taken = file in self._files or file in self._folders
        return not taken and (file in self._begun or not (self.folder / file).exists())

    def begin(self, files: Sequence[str]) -> None:
        """Note which files will be written, so that a run that goes on after a kill knows them as its own."""
        self.index["begun"] = list(files)
        self.flush()

    def end(self) -> None:
        """Write the index. Files that were begun and exist but are not listed stay noted: they are of this run."""
        listed = {entry["file"] for entry in self.index["images"]}
        left = [file for file in self.index.pop("begun") if file not in listed and (self.folder / file).exists()]
        if left:
            self.index["begun"] = left
        self.flush()

    def add(self, name: str, file: str, digest: str, written: Written) -> None:
        """List a photo's stream, which was written to the file that :meth:`place` gave."""
        forget_broken(self.index, name)
        about = {"size": list(written.size), "bytes": len(written.data), "num_codes": written.num_codes}
        self.index["images"].append({"name": name, "file": file, "sha256": digest, **about})
        if len(self.index["images"]) >= self._next_flush:
            self.flush()

    def skip(self, name: str, reason: str, digest: str) -> None:
        """List a broken file in the index."""
        forget_broken(self.index, name)
        self.index["broken"].append({"name": name, "reason": reason, "sha256": digest})

    def flush(self) -> None:
        """Write the index, and choose after how many photos to write it again: so many that it takes little time."""
        write_sealed(self.folder / INDEX, self.index)
        listed = len(self.index["images"])
        self._next_flush = listed + max(_LEAST, listed // 20)
