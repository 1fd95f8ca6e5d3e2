"""What dqcore raises on purpose; any other exception that leaves it is a bug.

The command line prints these in one line. ``except ValueError`` catches an :class:`InputError` as before.
"""

__all__ = ["DqcoreError", "InputError"]


class DqcoreError(Exception):
    """Something that the user can mend: an argument, a file, a setting. The message says what was expected."""


class InputError(DqcoreError, ValueError):
    """An argument, file or checkpoint that cannot be used; the message names it."""
