"""The state files of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dqcore.errors import InputError
from dqcore.files import write_atomically

__all__ = ["read_state", "write_state"]


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically, readable by :func:`read_state`."""
    write_atomically(path, lambda file: torch.save(state, file))


def read_state(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU with ``weights_only=True``, so that the file cannot run code.

    Raises:
        ValueError: the file is damaged, or is no state.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint of a training run ({type(error).__name__})") from error
    return state
