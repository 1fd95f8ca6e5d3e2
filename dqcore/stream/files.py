"""The tables of a model on disk: ``code_tables.safetensors`` beside its weights."""

from __future__ import annotations

import contextlib
import os
from dataclasses import fields
from pathlib import Path

import torch

from dqcore.errors import InputError
from dqcore.files import folder_lock
from dqcore.files.tensors import load_tensors, save_tensors
from dqcore.stream.checks import folder_of
from dqcore.stream.tables import CodeTables

__all__ = ["TABLES", "load_code_tables", "save_code_tables"]

TABLES = "code_tables.safetensors"


def save_code_tables(tables: CodeTables, folder: str | os.PathLike[str]) -> Path:
    """Write the tables into the folder of a saved model.

    Other tables that lie there already are kept as ``code_tables-<identity>.safetensors``, because streams that
    were written with them need them. Those that cannot be read, or are of another number of codes, are replaced.

    Args:
        tables: The tables.
        folder: Folder of the model.

    Returns:
        The file.

    Raises:
        InputError: Another process writes tables in the folder.
        TypeError: ``folder`` is no path, or ``tables`` are none.
    """
    if not isinstance(tables, CodeTables):
        raise TypeError(f"tables: expected CodeTables, got {type(tables).__name__}")
    folder = folder_of(folder, tables.codebook_size, tables.num_granularities)
    path = folder / TABLES
    with folder_lock(folder, "writing tables"):  # else two at once would each keep the first ones, and not the other's
        before = _readable(path)
        if before == tables:
            return path
        if before is not None and before.codes.shape == tables.codes.shape:
            _write(before, folder / f"code_tables-{before.identity[:8]}.safetensors")
        _write(tables, path)
    return path


def load_code_tables(folder: str | os.PathLike[str], codebook_size: int, num_granularities: int) -> list[CodeTables]:
    """The tables that streams of a model may have been written with: those to write with first, uniform ones last.

    Args:
        folder: Folder of a saved model, with tables or without.
        codebook_size: K of the model.
        num_granularities: G of the model.

    Raises:
        InputError: A file of tables is damaged, or belongs to a model with other codes.
        TypeError: ``folder`` is no path.
    """
    folder, found = folder_of(folder, codebook_size, num_granularities), list[CodeTables]()
    for path in (folder / TABLES, *sorted(folder.glob("code_tables-*.safetensors"))):
        if path.is_file():
            tables = _read(path)
            if (tables.num_granularities, tables.codebook_size) != (num_granularities, codebook_size):
                wanted = f"{codebook_size} codes at {num_granularities} granularities"
                raise InputError(f"{path}: expected tables of {wanted}, got {tables}")
            found.append(tables)
    return [*found, CodeTables.uniform(codebook_size, num_granularities)]


def _write(tables: CodeTables, path: Path) -> None:
    save_tensors(path, {field.name: getattr(tables, field.name).to(torch.int32) for field in fields(tables)})


def _readable(path: Path) -> CodeTables | None:
    with contextlib.suppress(FileNotFoundError, InputError):
        return _read(path)
    return None


def _read(path: Path) -> CodeTables:
    try:
        state = load_tensors(path)
        return CodeTables(**{field.name: state[field.name].long() for field in fields(CodeTables)})
    except (KeyError, InputError) as error:
        raise InputError(f"{path}: not the tables of a model ({error})") from error
