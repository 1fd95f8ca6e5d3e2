"""What the verbs print: where nobody takes it any more, their work goes on."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

__all__ = ["lasting"]

_ERRORS = "dqcore.printed"


class _Lasting(io.FileIO):
    """The file of a stream; once it takes no more, what else is printed is dropped."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def lasting() -> Iterator[Callable[[], str]]:
    """While this is open, printing raises nothing: whoever stops reading, on a full disk, in any encoding.

    A character that the encoding lacks is printed as its number; the bytes of file names stay as they are.

    Yields:
        Says why stdout took no more; empty where it took all, or its reader, such as ``head``, has enough.
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


def _file_of(stream: TextIO) -> _Lasting | None:
    """The file that a stream writes to, opened once more; None of a closed one, one in memory, or a program's own."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    with contextlib.suppress(OSError):  # in memory
        stream.flush()
        return _Lasting(stream.fileno(), "w", closefd=False)
    return None


def _stream(file: _Lasting | None, like: TextIO) -> TextIO:
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
