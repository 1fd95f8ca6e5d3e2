"""The state files of training runs, and a lock on their folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dqcore.errors import InputError
from dqcore.files import write_atomically

__all__ = ["read_state", "sole_owner", "write_state"]

#: Seconds to wait for the lock: the loader processes of a killed run hold it until they notice.
PATIENCE = 15.0


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically, readable by :func:`read_state`."""
    write_atomically(path, lambda file: torch.save(state, file))


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no second run writes into it; it is made if it is missing.

    The lock ends with the process. After a kill it may take its loader processes a few seconds to end too.

    Raises:
        ValueError: another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + PATIENCE
    try:
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise InputError(f"out: another process is training in {folder}")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


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


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True
