"""Processes that do the pieces of experiments: they end when they are told to, and when their starter is gone."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import torch

from dqcore.errors import DqcoreError
from dqcore.files.signals import FirstSignal
from dqcore.training import NonFiniteLossError, StoppedError

__all__ = ["Task", "do_in_processes"]

#: A function, its arguments, and the line to say when it is done.
Task = tuple[Callable[..., object], tuple[Any, ...], str]

#: Seconds to wait before another look.
PAUSE = 0.5


@dataclass
class _Worker:
    """What a process of the pool knows of itself: whether it works, whether it shall end, and of the first signal."""

    busy: bool = False
    told: bool = False
    first: FirstSignal = field(default_factory=FirstSignal)


_here = _Worker()


def do_in_processes(tasks: Sequence[Task], jobs: int, told: Callable[[int, str], object]) -> None:
    """Do tasks in ``jobs`` processes, each on one core.

    Where a task fails or a signal comes, those under way end too: training runs save what they have.

    Args:
        tasks: The tasks.
        jobs: Processes.
        told: Called with the number of tasks done so far, and the line of the last one.

    Raises:
        DqcoreError: A loss became infinite or NaN, or a process was killed.
        KeyboardInterrupt: A signal came.
    """
    # A process that was forked after torch has started its threads may hang.
    context = multiprocessing.get_context("spawn")
    # Nothing is sent through these pipes: they are closed, also by the death of this process. A lock would not do, as
    # a process that is killed may hold it.
    (stopped, stop), (left, leave) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(stopped, left))
    try:
        running = {pool.submit(_do, function, arguments): text for function, arguments, text in tasks}
        for done, future in enumerate(concurrent.futures.as_completed(running), 1):
            future.result()
            told(done, running[future])
    except concurrent.futures.process.BrokenProcessPool as error:
        leave.close()  # the pool has told the others to end, with a signal; a second one would end them at once
        reason = "a process was killed, as where memory runs out (fewer --jobs need less)"
        raise DqcoreError(f"{reason}; the same command goes on") from error
    finally:
        if not leave.closed:
            stop.close()
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:  # the second one
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _begin(stopped: Connection, left: Connection) -> None:
    """Prepare a process of the pool.

    It leaves the group of processes that Ctrl-C reaches: from there a training run would get the signal twice, and the
    second ends it at once.

    Args:
        stopped: Closed at the other end when what is under way shall end.
        left: Closed at the other end when the process shall end that has nothing under way.
    """
    torch.set_num_threads(1)
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    threading.Thread(target=_watch, args=(stopped, left), daemon=True).start()


def _end(number: int, frame: FrameType | None) -> None:
    _here.told = True
    if _here.busy and not _here.first.is_echo():
        raise KeyboardInterrupt


def _watch(stopped: Connection, left: Connection) -> None:
    """Do what :func:`_begin` says of its arguments."""
    multiprocessing.connection.wait([stopped, left])
    _here.told = True
    if stopped.poll(PAUSE) and _here.busy:  # the starter's death closes one after the other
        os.kill(os.getpid(), signal.SIGTERM)
    left.poll(None)
    while _here.busy:
        time.sleep(PAUSE)
    os._exit(1)


def _do(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Do a task in a process of the pool; what it raises must be readable on the other side."""
    if _here.told:
        raise KeyboardInterrupt
    _here.busy = True
    try:
        function(*arguments)
    except StoppedError as stop:
        _here.told = True
        raise KeyboardInterrupt(str(stop)) from None
    except NonFiniteLossError as error:
        raise DqcoreError(str(error)) from None
    finally:
        _here.busy = False
