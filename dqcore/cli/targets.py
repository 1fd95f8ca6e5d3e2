"""Files that a verb may write its numbers to."""

from __future__ import annotations

import json
from pathlib import Path

from dqcore.errors import InputError

__all__ = ["check_json_target"]


def check_json_target(path: Path, verb: str, key: str) -> None:
    """Refuse a file that is there and holds no numbers of this verb.

    Args:
        path: The file.
        verb: The verb, for the message.
        key: What its numbers have at the top, and other files do not.

    Raises:
        InputError: The file is another.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        before = None
    if not isinstance(before, dict) or key not in before:
        raise InputError(f"json: {path} is there already and holds no numbers of dqcore {verb}; choose another name")
