"""Files that a verb may write its numbers to."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dqcore.errors import InputError

__all__ = ["check_json_target", "check_place"]


def check_json_target(path: Path, verb: str, key: str) -> None:
    """Refuse a file that is there and holds no numbers of this verb, or one that cannot be written.

    Args:
        path: The file.
        verb: The verb, for the message.
        key: What its numbers have at the top, and other files do not.

    Raises:
        InputError: The file is another, or no place for one.
    """
    check_place(path, "json")
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        before = None
    if not isinstance(before, dict) or key not in before:
        raise InputError(f"json: {path} is there already and holds no numbers of dqcore {verb}; choose another name")


def check_place(path: Path, argument: str) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Args:
        path: The file; its folder need not be there yet.
        argument: What the user named it by, for the message.

    Raises:
        InputError: There is no folder that it could be written into.
    """
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        what = "may not be written into" if folder.is_dir() else "is no folder"
        raise InputError(f"{argument}: {path} cannot be written, {folder} {what}")
