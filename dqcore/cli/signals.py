"""What Ctrl-C and SIGTERM do to the command line where no verb waits for them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from dqcore.files.signals import FirstSignal

__all__ = ["endable", "ending_at_once"]


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came while no verb was waiting for it."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def endable() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does: temporary files are removed, what is open is closed.

    Libraries may turn the interruption into another error or swallow it; it is raised again at the end.
    """
    noted: list[KeyboardInterrupt] = []
    first = FirstSignal()

    def end(number: int, frame: object) -> None:
        if first.is_echo():  # it would interrupt the cleaning up, and kill the processes that are saving
            return
        noted.append(_TerminatedError("terminated") if number == signal.SIGTERM else KeyboardInterrupt())
        raise noted[0]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background of a shell it is ignored
        heeded.append(signal.SIGINT)
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    except Exception as error:
        if noted:
            raise noted[0] from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise noted[0]


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """While this is open, signals end the program at once: an exception within an import may be lost or changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
