"""Images in an LMDB database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from dqcore.data.containers import OfProcess, check_size
from dqcore.errors import InputError

__all__ = ["DATABASE", "Lmdb"]

#: The file by which a folder is known as an LMDB database.
DATABASE = "data.mdb"


class Lmdb(OfProcess):
    """An LMDB database of encoded images, a folder or one ``.lmdb`` file.

    The name of each image is its key, with bytes that are no plain text as ``%XX``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._file = path, path / DATABASE if path.is_dir() else path
        self.handle()

    def _new(self) -> Any:
        try:
            import lmdb
        except ImportError as error:
            raise InputError(f"{self._path}: an LMDB database needs: pip install 'dqcore[lmdb]'") from error
        try:
            options: dict[str, Any] = {"readonly": True, "lock": False, "readahead": False, "max_spare_txns": 16}
            found = lmdb.open(os.fspath(self._path), subdir=self._file != self._path, **options)
        except lmdb.Error as error:
            raise InputError(f"{self._path}: damaged, or open already ({error})") from error
        needed = (found.info()["last_pgno"] + 1) * found.stat()["psize"]
        if self._file.stat().st_size < needed:  # reading on would end the process by a signal
            found.close()
            raise InputError(f"{self._path}: cut off, {self._file.name} has fewer than its {needed} bytes")
        return found

    def _keys(self) -> Iterator[bytes]:
        with self.handle().begin(buffers=False) as transaction:
            yield from transaction.cursor().iternext(keys=True, values=False)

    def names(self) -> list[str]:
        """Names of the images, sorted."""
        try:
            return sorted(quote_from_bytes(key, safe="") for key in self._keys())
        except Exception as error:  # lmdb's, of a damaged page
            raise InputError(f"{self._path}: damaged ({error})") from error

    def passed_over(self) -> list[str]:
        """Nothing: every key is an image."""
        return []

    def read(self, name: str) -> bytes:
        """See :class:`Archive`."""
        try:
            with self.handle().begin() as transaction:
                value = transaction.get(unquote_to_bytes(name)) if name else None
        except Exception as error:  # lmdb's, of a damaged page
            raise InputError(f"its archive is damaged ({error})") from error
        if value is None:
            raise FileNotFoundError(f"no {name} in {self._path}")
        check_size(len(value))
        return value
