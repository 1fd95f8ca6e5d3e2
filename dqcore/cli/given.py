"""Which options were named on the command line, for a verb that must tell them from defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from dqcore.printing import typed

__all__ = ["given_line", "named_options", "naming"]

_words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


@contextlib.contextmanager
def naming(words: Sequence[str]) -> Iterator[None]:
    """While this is open, these are the words after the verb."""
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def given_line(verb: str) -> str:
    """The command that was given, as it is typed into a shell."""
    return f"dqcore {verb} {' '.join(map(typed, _words.get()))}"


def named_options(known: Sequence[str], renamed: dict[str, str] | None = None) -> list[str]:
    """The options that were named, in the order of ``known``.

    Args:
        known: Names as in Python, such as ``"batch_size"``; ``--batch-size``, ``--batch-size=2`` and, for a switch,
            ``--no-batch-size`` name it.
        renamed: Old names that are still read: ``{"old": "new"}``.
    """
    flags = {word.split("=")[0][2:].replace("-", "_") for word in _words.get() if word.startswith("--")}
    flags |= {flag[3:] for flag in flags if flag.startswith("no_")}
    flags |= {new for old, new in (renamed or {}).items() if old in flags}
    return [name for name in known if name in flags]
