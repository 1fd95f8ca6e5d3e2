"""The values of a dataclass's fields against what its annotations say."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dqcore.errors import InputError

__all__ = ["as_float", "check_fields"]


def check_fields(options: Any) -> None:
    """Raise unless each field's value is of the kind that its annotation names; called by ``__post_init__``.

    Known are ``int``, ``float``, ``bool``, ``str``, ``Path``, ``Literal``, tuples of these and their unions with None;
    other annotations take anything. NumPy's numbers become Python's, lists and arrays tuples, a number a tuple where
    one of any length is expected, and text a path.

    Args:
        options: A dataclass's instance, frozen or not.

    Raises:
        InputError: A value of another kind; it names the field.
    """
    hints = get_type_hints(type(options))
    for field in dataclasses.fields(options):
        given = getattr(options, field.name)
        try:
            value = _fitted(given, hints[field.name])
        except _Unfit as error:
            raise InputError(f"{field.name}: expected {error}, got {given!r}") from None
        if value is not given:
            object.__setattr__(options, field.name, value)


def as_float(**number: Any) -> float:
    """The one number given, by its name, as Python's: the launcher of a kernel knows no other kind.

    Raises:
        InputError: It is none, such as a tensor.
    """
    ((name, value),) = number.items()
    try:
        return float(_number(value))
    except _Unfit as error:
        raise InputError(f"{name}: expected {error}, got {value!r}") from None


class _Unfit(Exception):
    """A value is of another kind; the message says what was expected."""


def _fitted(value: Any, kind: Any) -> Any:
    """The value as its annotation has it."""
    origin, among = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _any_of(value, among)
    if origin is Literal:
        if isinstance(value, str) and value in among:
            return value
        raise _Unfit(f"one of {', '.join(among)}" if len(among) > 2 else " or ".join(among))
    if origin is tuple:
        return _tuple(value, among)
    return _KINDS[kind](value) if kind in _KINDS else value


def _any_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    expected = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return _fitted(value, kind)
            except _Unfit as error:
                expected.append(str(error))
    raise _Unfit(" or ".join(expected))


def _tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    any_length = kinds[-1] is Ellipsis
    if hasattr(value, "tolist"):  # NumPy's arrays and PyTorch's
        value = value.tolist()
    if any_length and isinstance(value, Real):
        value = (value,)
    if not isinstance(value, tuple | list) or not (any_length or len(value) == len(kinds)):
        raise _Unfit("a tuple" if any_length else f"a tuple of {len(kinds)}")
    if any_length:
        kinds = kinds[:1] * len(value)
    return tuple(_fitted(part, kind) for part, kind in zip(value, kinds, strict=True))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _Unfit("a whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _Unfit("a number")
    return value if isinstance(value, int) else float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("True or False")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit("text")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | PathLike):
        raise _Unfit("a path")
    return value if isinstance(value, Path) else Path(value)


_KINDS: dict[Any, Callable[[Any], Any]] = {int: _whole, float: _number, bool: _flag, str: _text, Path: _path}
