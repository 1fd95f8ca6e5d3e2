"""What dqcore raises on purpose; any other exception that leaves it is a bug.

The command line prints these in one line. ``except ValueError`` catches an :class:`InputError` as before.
"""

from __future__ import annotations

from numbers import Integral

__all__ = ["DqcoreError", "InputError", "at_least", "whole_at_least"]


class DqcoreError(Exception):
    """Something that the user can mend: an argument, a file, a setting. The message says what was expected."""


class InputError(DqcoreError, ValueError):
    """An argument, file or checkpoint that cannot be used; the message names it."""


def at_least(least: float, **numbers: float | None) -> None:
    """Raise :class:`InputError` unless each argument, given by its name, is None or this large."""
    for name, number in numbers.items():
        if number is not None and not number >= least:
            raise InputError(f"{name}: expected at least {least}, got {number}")


def whole_at_least(least: int | None = None, **numbers: int | None) -> None:
    """Raise :class:`InputError` unless each argument, given by its name, is None or whole, and at least this large.

    NumPy's whole numbers are some, True and False are none, and neither is a number with a decimal point.
    """
    for name, number in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, Integral) or (least is not None and number < least):
            expected = "a whole number" if least is None else f"at least {least} and whole"
            raise InputError(f"{name}: expected {expected}, got {number!r}")
