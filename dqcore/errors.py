"""What dqcore raises on purpose; any other exception that leaves it is a bug.

The command line prints these in one line. ``except ValueError`` catches an :class:`InputError` as before.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, SupportsFloat

__all__ = ["DqcoreError", "InputError", "at_least", "number_given", "whole_at_least", "whole_given"]


class DqcoreError(Exception):
    """Something that the user can mend: an argument, a file, a setting. The message says what was expected."""


class InputError(DqcoreError, ValueError):
    """An argument, file or checkpoint that cannot be used; the message names it."""


def at_least(least: float, **numbers: float | None) -> None:
    """Raise :class:`InputError` unless each argument, given by its name, is None or this large."""
    for name, number in numbers.items():
        try:
            fits = number is None or bool(number >= least)
        except (TypeError, ValueError, RuntimeError):  # text, a list, or an array of several numbers
            fits = False
        if not fits:
            raise InputError(f"{name}: expected at least {least}, got {number!r}")


def whole_at_least(least: int | None = None, **numbers: int | None) -> None:
    """Raise :class:`InputError` unless each argument, given by its name, is None or whole, and at least this large.

    NumPy's whole numbers are some, True and False are none, and neither is a number with a decimal point.
    """
    whole_given(least, **{name: number for name, number in numbers.items() if number is not None})


def whole_given(least: int | None = None, **numbers: int) -> None:
    """:func:`whole_at_least` of arguments that must not be None."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or (least is not None and number < least):
            expected = "a whole number" if least is None else f"at least {least} and whole"
            raise InputError(f"{name}: expected {expected}, got {number!r}")


def number_given(**numbers: Any) -> None:
    """Raise :class:`InputError` unless each argument, given by its name, is a number of any kind, a tensor too."""
    for name, number in numbers.items():
        if not isinstance(number, SupportsFloat):
            raise InputError(f"{name}: expected a number, got {number!r}")
