"""The end of a run that goes wrong: one process of all says why."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from datetime import timedelta

import torch.distributed as dist

__all__ = ["first_to_fail", "is_lost_process"]

#: Seconds to wait for the store when something went wrong.
PATIENCE = 3.0
#: What gloo, NCCL and the store say of a process that is not there any more.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out|timeout|socket", re.IGNORECASE)


def is_lost_process(error: Exception) -> bool:
    """Whether an exception says that another process ended, or did not answer in time."""
    lost = isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    return lost or isinstance(error, dist.DistError)


def first_to_fail() -> bool:
    """Whether no other process of this run has called this before: the one that fails first says why.

    The processes ask the store through which ``torchrun`` brought them together; without an answer this is True.
    """
    answers: list[int] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # If the store is gone, a client would retry for ever, and abort the process when that ends meanwhile.
            socket.create_connection(place, PATIENCE).close()
            store = dist.TCPStore(  # type: ignore[attr-defined]
                *place,
                is_master=False,
                timeout=timedelta(seconds=PATIENCE),
                wait_for_workers=False,
            )
            answers.append(store.add(f"dqcore/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1))

    asking = threading.Thread(target=ask, daemon=True)  # no answer comes if the store's process was stopped
    asking.start()
    asking.join(PATIENCE)
    return not answers or answers[0] == 1
