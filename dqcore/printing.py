"""Printing lines that may hold names from a disk: no name ends a line, moves the cursor or hides what follows."""

from __future__ import annotations

import re
import shlex
import sys

__all__ = ["one_line", "say", "typed"]

#: Control characters, other ends of lines, marks that turn the direction of writing, and bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def one_line(text: str) -> str:
    r"""The text with each unprintable character as an escape: ``a\nb``, ``a\x1b[31m``, and ``caf\xe9`` for a byte."""
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), text)


def typed(word: str) -> str:
    """A word as it is typed into a shell, on one line: bash and zsh read the escapes of ``$'..'``."""
    if not _UNPRINTABLE.search(word):
        return shlex.quote(word)
    escaped = re.sub(r"[\\']", lambda found: f"\\{found[0]}", word)
    return f"$'{one_line(escaped)}'"


def say(line: object = "", *, error: bool = False) -> None:
    """Print one line, to stdout or to stderr, at once."""
    print(one_line(str(line)), file=sys.stderr if error else sys.stdout, flush=True)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")
