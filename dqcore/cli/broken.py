"""One rule for all verbs that go past broken files: each is named, the rest is done, and the exit code is 2.

It is 0 where finding or leaving out broken files is a part of the task: ``data stats``, ``data make``, training.
"""

from __future__ import annotations

from collections.abc import Sequence

from dqcore.distributed import process_rank
from dqcore.errors import InputError
from dqcore.printing import say

__all__ = ["end_with_broken", "name_broken"]


def name_broken(reasons: Sequence[str], word: str = "broken") -> None:
    """Say on stderr why each file was passed over, in the first of several processes."""
    for reason in reasons if process_rank() == 0 else ():
        say(f"{word}: {reason}", error=True)


def end_with_broken(argument: str, reasons: Sequence[str], total: int) -> None:
    """End a verb: raise if there were broken files, in the first of several processes.

    Args:
        argument: What the user named the files by.
        reasons: Why each broken file was passed over.
        total: All files.

    Raises:
        InputError: There is a broken file.
    """
    if reasons and process_rank() == 0:
        number = f"{len(reasons)} of {total}"
        raise InputError(f"{argument}: {number} could not be read and were passed over, the first: {reasons[0]}")
