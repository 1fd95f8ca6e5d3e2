"""Notes on options that were named but changed nothing."""

from __future__ import annotations

from collections.abc import Mapping

from dqcore.cli.given import named_options
from dqcore.printing import say

__all__ = ["note_idle", "say_idle"]

_FOR_SHARDS = ("shard_size", "batch_size")


def say_idle(kind: str, *, alone: bool = False, nothing_left: bool = False) -> None:
    """Print a note on stderr for each option of ``dqcore encode`` that was named but changed nothing.

    Args:
        kind: What is written: ``"dqc"`` or ``"shards"``.
        alone: It is one file, not a folder.
        nothing_left: All of it was there already.
    """
    reasons = {}
    if not alone:
        reasons["overwrite"] = "it is for one .dqc file; in a folder what is there stays"
    for name in _FOR_SHARDS:
        if kind == "dqc":
            reasons[name] = "it is for shards"
        elif nothing_left:
            reasons[name] = "nothing was left to encode"
    note_idle(reasons)


def note_idle(reasons: Mapping[str, str]) -> None:
    """Print a note on stderr for each of these options that was named: why it changed nothing. Names as in Python."""
    for name in named_options(tuple(reasons)):
        say(f"note: --{name.replace('_', '-')} changed nothing: {reasons[name]}", error=True)
