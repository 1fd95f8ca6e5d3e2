"""A state whose tensors lie in parts on all processes (FSDP2): its checkpoints, and the way to whole tensors and back.

``checkpoint.pt`` then names a folder beside it, in which :mod:`torch.distributed.checkpoint` keeps the tensors. It is
written, with a checksum of each file there, when all of them are; until then it names the checkpoint before.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.training.state import write_state

__all__ = ["ShardedCheckpoints", "flat", "is_sharded", "local", "put", "read_shards", "whole"]

#: Entries of ``checkpoint.pt``: the folder's name, and the SHA-256 of each file in it.
FOLDER, FILES = "shards", "files"

Tensors = dict[str, dict[str, Any]]


def is_sharded(value: Tensor) -> TypeGuard[Any]:
    """Whether a tensor is a DTensor, known by a method of it: importing the class would take a second."""
    return hasattr(value, "full_tensor")


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor; a tensor that is not sharded as it is."""
    return value.to_local() if is_sharded(value) else value


def whole(value: Tensor) -> Tensor:
    """A tensor with the parts of all processes, each of which must call this; one that is not sharded as it is."""
    return value.full_tensor() if is_sharded(value) else value


def flat(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of nested mappings, by their keys with dots between."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{rest}": tensor for rest, tensor in flat(value).items()}
    return found


@torch.no_grad()
def put(value: Tensor, target: Tensor) -> None:
    """Write a whole tensor, that each process has, into one that may be sharded."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        here = value.to(target.device)
        value = distribute_tensor(here, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


class ShardedCheckpoints:
    """Writes checkpoints while the training goes on. Every process has one and calls its methods.

    Args:
        path: ``checkpoint.pt`` of the run, on a file system that all processes share.
        world: All processes.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self._group: Any = dist.new_group(backend="gloo")  # the training's own group is busy meanwhile
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: Mapping[str, Any], tensors: Tensors) -> None:
        """Begin a checkpoint; the tensors may change as soon as this returns.

        Args:
            state: Everything else, with the step's number as ``step``.
            tensors: By part and name.

        Raises:
            InputError: The checkpoint before could not be written.
        """
        self.finish()
        folder = self.path.with_name(f"{self.path.stem}-{state['step']:07d}")
        if self.world.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # a killed run's, which checkpoint.pt does not name
        self.world.barrier()
        from torch.distributed.checkpoint.state_dict_saver import async_save

        written = async_save(tensors, checkpoint_id=folder, process_group=self._group)
        self._thread = threading.Thread(target=self._complete, args=(written, folder, dict(state)))
        self._thread.start()

    def finish(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            InputError: It could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        reason = "" if self._error is None else _reason(self._error)
        if reason := next(filter(None, self.world.gather(reason)), ""):
            raise InputError(f"out: the checkpoint beside {self.path} could not be written: {reason}") from self._error

    def _complete(self, written: Any, folder: Path, state: dict[str, Any]) -> None:
        try:
            written.result()  # in the first process this waits until all have written
            if self.world.is_main:
                write_state(self.path, {**state, FOLDER: folder.name, FILES: _digests(folder)})
                for other in self.path.parent.glob(f"{self.path.stem}-*"):
                    if other != folder and other.is_dir():
                        shutil.rmtree(other, ignore_errors=True)
        except BaseException as error:
            self._error = error


def read_shards(path: Path, state: Mapping[str, Any], tensors: Tensors, world: World) -> None:
    """Read the tensors of a checkpoint, of however many processes, in place; every process calls this.

    Args:
        path: The run's ``checkpoint.pt``.
        state: Its contents.
        tensors: Where to; sharded or not, and of as many processes as there are now.
        world: All processes.

    Raises:
        InputError: A file is missing or damaged, or the tensors are others.
    """
    folder = path.with_name(str(state[FOLDER]))
    damaged = world.of_first(_damaged(folder, state[FILES]) if world.is_main else None)
    if damaged:
        raise InputError(f"{folder / damaged}: missing or damaged; {path.name} names it")
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from dqcore.training.shard_reader import ShardReader

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # by one process, as it should be
            load(tensors, storage_reader=ShardReader(folder), no_dist=world.size == 1)
    except (CheckpointException, Exception) as error:  # the former is no Exception
        raise InputError(f"{folder}: not a checkpoint of this run: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The last line of an error's message; the lines before it are a report of torch's."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, by name."""
    return {path.name: _digest(path) for path in sorted(folder.iterdir())}


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _damaged(folder: Path, known: Mapping[str, str]) -> str:
    """The first file that is not as it was written, or an empty text."""
    found = _digests(folder) if folder.is_dir() else {}
    return next((name for name, digest in known.items() if found.get(name) != digest), "")
