"""Files of tensors that carry a checksum: safetensors, and states that ``torch.load`` reads.

A safetensors file has it in its metadata, a state in the comment of its zip archive, so other programs read both. Files
of other programs have none, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.files import write_atomically

__all__ = ["load_tensors", "metadata_of", "read_state", "save_tensors", "tensor_shapes", "write_state"]

_KEY = "sha256"
_HEX = 64  # its digits
_SEAL = b"dqcore sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
#: Bytes of the last record of a zip archive without a comment, and what it begins with.
_END, _END_MARK = 22, b"PK\x05\x06"
_MOST_HEADER = 100 << 20  # as the safetensors library allows
_BLOCK = 1 << 20


def save_tensors(path: Path, tensors: dict[str, Tensor], about: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write tensors as a safetensors file with a checksum, atomically. The same tensors give the same bytes.

    Args:
        path: The file.
        tensors: On the CPU.
        about: Goes into its metadata.
    """
    from safetensors.torch import save

    data = save(tensors, metadata={"format": "pt"})
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
    header["__metadata__"] |= about
    header["__metadata__"][_KEY] = _digest(header, [body])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: IO[bytes]) -> None:
        for part in (len(text).to_bytes(8, "little"), text, body):
            file.write(part)

    write_atomically(path, write)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        InputError: It is none, or its checksum is wrong.
        OSError: It cannot be read.
    """
    from safetensors.torch import load_file

    try:
        _check_tensors(path)
        tensors: dict[str, Tensor] = load_file(path)
    except (InputError, OSError):
        raise
    except Exception as error:  # of a damaged file, anything
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    return tensors


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file that can be read says of itself."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file; nothing else is read.

    Raises:
        InputError: It is no such file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically, readable by :func:`read_state` and ``torch.load``."""

    def write(file: IO[bytes]) -> None:
        sealed = _Sealed(file)
        torch.save(state, cast(IO[bytes], sealed))
        sealed.finish()

    write_atomically(path, write)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU with ``weights_only=True``, so that the file cannot run code.

    Raises:
        InputError: The file is damaged, or is no state.
    """
    try:
        _check_state(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else type(error).__name__
        raise InputError(f"{path}: not a checkpoint of a training run ({reason})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: not a checkpoint of a training run (it holds a {type(state).__name__})")
    return state


class _Sealed:
    """A file for ``torch.save``, which writes a zip archive: the archive gets the SHA-256 of itself as its comment.

    If writing fails, :meth:`finish` raises the error: PyTorch would turn it into another one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._tail = file, hashlib.sha256(), b""
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all but the last bytes so far, which :meth:`finish` changes."""
        view = memoryview(data).cast("B")
        if len(view) < _END:
            joined = self._tail + bytes(view)
            self._put(joined[:-_END])
            self._tail = joined[-_END:]
        else:
            self._put(self._tail)
            self._put(view[:-_END])
            self._tail = bytes(view[-_END:])
        return len(view)

    def flush(self) -> None:
        """Do nothing: the last bytes wait for :meth:`finish`, and all others are written."""

    def finish(self) -> None:
        """Write the end of the archive, and the seal.

        Raises:
            OSError: This or an earlier part could not be written.
        """
        if self._tail[:4] == _END_MARK and self._tail[-2:] == b"\0\0":
            self._put(self._tail[:-2] + _SEAL_LENGTH.to_bytes(2, "little"))
            self._put(_SEAL + self._digest.hexdigest().encode())
        else:
            self._put(self._tail)
        if self._error is not None:
            raise self._error

    def _put(self, data: Any) -> None:
        if self._error is not None:
            return
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error


def _check_state(path: Path) -> None:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _SEAL_LENGTH))
        seal = file.read()
        if seal.startswith(_SEAL):
            file.seek(0)
            digest = hashlib.sha256()
            for block in _blocks(file, size - _SEAL_LENGTH):
                digest.update(block)
            if seal != _SEAL + digest.hexdigest().encode():
                raise InputError("damaged: its checksum is wrong")
            return
    with zipfile.ZipFile(path) as archive:  # of an earlier version
        if archive.comment or archive.testzip() is not None:
            raise InputError("damaged: a checksum in it is wrong")


def _check_tensors(path: Path) -> None:
    """Raise if a file has a checksum and it is wrong; what is no safetensors file at all is left to the library."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MOST_HEADER):
            return
        header = json.loads(file.read(length))
        metadata = header.get("__metadata__", {})
        known = metadata.pop(_KEY, None)
        if known is None and any(len(value) == _HEX for value in metadata.values()):
            known = ""  # a checksum whose own name is damaged
        if known is not None and known != _digest(header, _blocks(file, size - 8 - length)):
            raise InputError(f"{path}: damaged: its checksum is wrong")


def _digest(header: Mapping[str, Any], parts: Iterable[Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block
