"""Writing files so that they are whole or absent, and folders that one process writes to at a time."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from dqcore.errors import InputError

__all__ = ["folder_lock", "remove_leftovers", "sole_owner", "write_atomically", "write_json"]

#: Seconds to wait for a lock: a process that was just killed may need a moment to end.
PATIENCE = 2.0

#: A temporary file of another machine or container counts as left behind if it has not changed for so many seconds.
REST = 3600.0

_numbers = itertools.count()
#: A hash of the file's name, which may itself be as long as names can be; the machine; the process; its number.
_TEMPORARY = re.compile(r"\.([0-9a-f]{16})\.([0-9a-f]{8})\.(\d+)-\d+\.dqcore\.tmp")
#: Folders, by device and inode, that this thread of execution has locked already.
_owned: ContextVar[frozenset[tuple[int, int]]] = ContextVar("owned", default=frozenset())
_descriptors: set[int] = set()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file; if the program is killed meanwhile, the old file stays as it was.

    Args:
        path: The file; its folder is made if it is missing.
        write: Called with a binary file to write the contents to.

    Raises:
        OSError: It cannot be written, as on a full disk; the error names the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = _hash(path.name, 16), _machine(), f"{os.getpid()}-{next(_numbers)}"
        temporary = path.with_name(f".{'.'.join(parts)}.dqcore.tmp")
        try:
            with open(temporary, "wb") as file:
                _locked(file.fileno())  # says that it is in use, also to those who see other processes
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot be written ({os.strerror(error.errno)})", str(path)) from error


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, with :func:`write_atomically`."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def remove_leftovers(folder: Path, target: str = "") -> None:
    """Remove what :func:`write_atomically` left in a folder and those in it, in processes that are dead.

    Args:
        folder: The folder.
        target: Only those of a file of this name, right in the folder.
    """
    places: Iterable[tuple[str, list[str], list[str]]]
    places = [(str(folder), [], os.listdir(folder))] if target else os.walk(folder)
    wanted = _hash(target, 16)
    for base, _, names in places:
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and (not target or match[1] == wanted):
                _remove_if_left(Path(base, name), match[2], int(match[3]))


def _remove_if_left(path: Path, machine: str, process: int) -> None:
    """Remove a temporary file that is no longer written: its process does not run here, and nobody holds its lock."""
    here = machine == _machine()
    if here and _alive(process):
        return
    try:
        descriptor = os.open(path, os.O_RDWR)  # a network's file system locks no file that is open to read alone
    except OSError:
        return
    try:
        rests = time.time() - os.fstat(descriptor).st_mtime > REST
        if (here or rests) and _locked(descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """A hash of the machine, or the container, within which a process is known by its number."""
    with contextlib.suppress(OSError):
        return _hash(f"{os.uname().nodename}/{os.stat('/proc/self/ns/pid').st_ino}", 8)
    return _hash(os.uname().nodename, 8)


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:digits]


@contextlib.contextmanager
def sole_owner(folder: Path, doing: str = "writing") -> Iterator[None]:
    """Lock a folder, so that no second process writes into it; what dead processes left half written is removed.

    The folder is made if it is missing, and removed again if nothing came into it. The lock ends with the process;
    processes that were forked meanwhile do not hold it. Where this is open already it may be opened again.

    Args:
        folder: Folder of the output.
        doing: What is done in it, for the message to others.

    Raises:
        InputError: Another process has the lock, or the name is that of a file.
    """
    with folder_lock(folder, doing) as first:
        if first:
            remove_leftovers(folder)
        yield


@contextlib.contextmanager
def folder_lock(folder: Path, doing: str = "writing") -> Iterator[bool]:
    """The lock of :func:`sole_owner` without its clean-up, which has to look through the whole folder.

    Yields:
        Whether the folder was not locked before by this thread of execution.
    """
    new = not folder.exists()
    descriptor = _locked_descriptor(folder, doing)
    if descriptor is None:
        yield False
        return
    about = os.fstat(descriptor)
    token = _owned.set(_owned.get() | {(about.st_dev, about.st_ino)})
    try:
        yield True
    finally:
        _owned.reset(token)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _locked_descriptor(folder: Path, doing: str) -> int | None:
    """A descriptor of the folder that holds its lock; None where this thread of execution has it already."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out: {folder} is a file, expected a folder")
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        about = os.fstat(descriptor)
        owned = (about.st_dev, about.st_ino) in _owned.get()
        # Whoever had the lock before may have removed the folder; then this locks a folder that is not there.
        if not owned and _locked(descriptor) and _is_still(folder, about):
            _descriptors.add(descriptor)
            return descriptor
        os.close(descriptor)
        if owned:
            return None
        if time.monotonic() > deadline:
            raise InputError(f"out: another process is {doing} in {folder}")
        time.sleep(0.05)


def _is_still(folder: Path, about: os.stat_result) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(folder.stat(), about)
    return False


def _locked(descriptor: int) -> bool:
    import fcntl  # of POSIX alone

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _forget_locks() -> None:
    """In a forked process, such as a loader: close the locks that it inherited. The parent keeps them."""
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _owned.set(frozenset())


os.register_at_fork(after_in_child=_forget_locks)
