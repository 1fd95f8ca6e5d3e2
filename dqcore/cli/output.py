"""Printing that never fails: when stdout cannot be written any more, a verb goes on with its work."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

__all__ = ["unfailing_output"]

_ERRORS = "dqcore.printed"


class _UnfailingFile(io.FileIO):
    """The file of a stream; after the first failed write, whatever is printed is dropped."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def unfailing_output() -> Iterator[Callable[[], str]]:
    """While this is open, printing raises nothing: not if the reader has gone, the disk is full, or a character fails.

    A character that the encoding lacks is printed as its number; the bytes of file names stay as they are.

    Yields:
        A function that says why stdout could not be written; empty if it could, or if its reader, such as ``head``,
        closed it.
    """
    codecs.register_error(_ERRORS, _escaped)
    before = sys.stdout, sys.stderr
    files = [_file_of(stream) for stream in before]
    out, err = (_stream(file, stream) for file, stream in zip(files, before, strict=True))

    def lost() -> str:
        if files[0] is None:
            return ""
        out.flush()
        error = files[0].lost
        return "" if error is None or error.errno == errno.EPIPE else str(error.strerror)

    sys.stdout, sys.stderr = out, err
    try:
        yield lost
    finally:
        sys.stdout, sys.stderr = before
        for file, stream in zip(files, (out, err), strict=True):
            if file is not None:
                stream.flush()


def _file_of(stream: TextIO) -> _UnfailingFile | None:
    """The file that a stream writes to, opened once more; None of a closed one, one in memory, or a program's own."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    with contextlib.suppress(OSError):  # in memory
        stream.flush()
        return _UnfailingFile(stream.fileno(), "w", closefd=False)
    return None


def _stream(file: _UnfailingFile | None, like: TextIO) -> TextIO:
    """A stream to a file; without one the stream that is there."""
    if isinstance(like, io.TextIOWrapper) and file is not None:
        at_once = like.line_buffering or like.write_through
        return io.TextIOWrapper(io.BufferedWriter(file), like.encoding, _ERRORS, line_buffering=at_once)
    if isinstance(like, io.TextIOWrapper):
        like.reconfigure(errors=_ERRORS)
    return like


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for a character that cannot be encoded: of file names, which need not be UTF-8, its byte."""
    assert isinstance(error, UnicodeEncodeError)
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return bytes([code - 0xDC00]), error.start + 1
    return error.object[error.start].encode("ascii", "backslashreplace"), error.start + 1
