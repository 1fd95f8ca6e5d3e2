"""``config.json`` in a run's folder: what was run, on what, and whether a resumed run is the same."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dqcore.codebook.modules import count_numbers
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.training.arguments import Arguments

__all__ = ["RunRecord", "check_options", "check_outside", "check_unused", "held_out_before"]


@dataclass(frozen=True)
class RunRecord:
    """The contents of ``config.json``.

    Attributes:
        options: Every option.
        about: A description of the model, and other facts worth knowing.
        model: The model; its parameters are counted.
        data: A description of the images or codes. A resumed run must have the same.
        data_name: The name that ``data`` is stored under: ``"data"`` for images, ``"codes"`` for codes.
        total: Steps of the run; of one whose length is in minutes, those so far.
        world: All processes.
    """

    options: Arguments
    about: dict[str, Any]
    model: nn.Module
    data: dict[str, Any]
    data_name: str
    total: int
    world: World

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        parameters, codebook = count_numbers(self.model)
        return {
            "options": self.options.as_json(),
            "started_in": str(Path.cwd()),  # where relative paths among the options begin
            **self.about,
            "parameters": parameters,
            "codebook_numbers": codebook,
            self.data_name: self.data,
            "steps": self.total,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "device": str(self.world.device),
            "versions": {
                "dqcore": importlib.metadata.version("dqcore"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def write(self, folder: Path) -> None:
        """Write ``config.json``, in the main process."""
        if self.world.is_main:
            write_sealed(folder / "config.json", self.as_json())

    def check_same(self, folder: Path, *, free: Collection[str]) -> None:
        """Raise unless the run in a folder was started with the same options, on the same data.

        Args:
            folder: The run's folder.
            free: Options that may differ.

        Raises:
            ValueError: They differ, or ``config.json`` cannot be read.
        """
        before = check_options(self.options, folder, free=free)
        if self.data_name not in before:
            raise InputError(f"resume: {folder / 'config.json'} cannot be read (it has no {self.data_name!r})")
        if before[self.data_name] != self.data:
            what = "the folder's files are not those" if self.data_name == "data" else "they are not those"
            raise InputError(f"{self.data_name}: {what} that the run was started with")


def check_options(options: Arguments, folder: Path, *, free: Collection[str]) -> dict[str, Any]:
    """Raise unless the run in a folder was started with these options, but for the ``free`` ones; return its record."""
    path = folder / "config.json"
    try:
        before = read_sealed(path)
        started = {**options.ADDED, **before["options"]}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"resume: {path} cannot be read ({error!r})") from error
    for name, value in options.as_json().items():
        if name not in free and started.get(name) != value:
            raise InputError(f"{name}: the run was started with {started.get(name)}, got {value}")
    return before


def held_out_before(out: Path, *, resume: bool) -> int | None:
    """How many images the run in a folder held out, if it goes on: it keeps its split. None for a run that begins."""
    if not resume or not (out / "checkpoint.pt").is_file():
        return None
    try:
        record = read_sealed(out / "config.json")
        found = record["data"]["validation"] if "data" in record else record["codes"]["held_out"]
    except (OSError, ValueError, KeyError, TypeError):  # the check of the options will say so
        return None
    return found if type(found) is int and found > 0 else None


def check_unused(out: Path, *, resume: bool) -> None:
    """Raise if a run in this folder would overwrite another one, or files that no run made.

    A run that ended before its first checkpoint may be begun again: nothing of it is lost.
    """
    if (out / "checkpoint.pt").is_file():
        if not resume:
            raise InputError(f"out: {out} holds a run already; resume it or choose another folder")
    elif (out / "model" / "model.safetensors").is_file():
        raise InputError(f"out: {out} holds a trained model without a checkpoint to resume; choose another folder")
    path = out / "config.json"
    if path.is_file() and not _is_record(path):
        raise InputError(f"out: {path} was not made by dqcore; choose another folder")


def check_outside(out: Path, source: Path | None) -> None:
    """Raise if a run's pictures would lie among its own training images."""
    if source is not None and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"out: {out} lies in {source}, whose images its pictures would be among; choose another folder"
        )


def _is_record(path: Path) -> bool:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and isinstance(found.get("options"), dict)
