"""Read a folder of :mod:`torch.distributed.checkpoint` without running code: its table of contents is a pickle."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dqcore.errors import InputError

__all__ = ["ShardReader"]

#: What the table of contents is made of, by module; nothing else is unpickled.
_KNOWN = {
    "torch": r"float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool|Size",
    "torch.serialization": r"_get_layout",
    "pathlib": r"PosixPath|WindowsPath",
    "pathlib._local": r"PosixPath|WindowsPath",
    "torch.distributed.checkpoint.metadata": r"Metadata|MetadataIndex|StorageMeta|TensorProperties|"
    r"TensorStorageMetadata|ChunkStorageMetadata|_MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem": r"_StorageInfo",
}


class ShardReader(FileSystemReader):
    """Reads a folder that holds tensors alone.

    Args:
        folder: Its path.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def read_metadata(self, *args: Any, **options: Any) -> Any:
        """The table of contents.

        Raises:
            InputError: It names anything but tensors in files of this folder.
        """
        with (self._folder / ".metadata").open("rb") as file:
            found: Any = _Unpickler(file).load()
        if not all(isinstance(entry, TensorStorageMetadata) for entry in found.state_dict_metadata.values()):
            raise InputError("it holds something else than tensors")
        if any("/" in str(info.relative_path) for info in found.storage_data.values()):
            raise InputError("its files lie elsewhere")
        found.storage_meta.load_id = self.load_id
        return found


class _Unpickler(pickle.Unpickler):
    """Knows the few classes of a table of contents."""

    def find_class(self, module: str, name: str) -> Any:
        if re.fullmatch(_KNOWN.get(module, "$^"), name) is None:
            raise InputError(f"its table of contents names {module}.{name}")
        return super().find_class(module, name)
