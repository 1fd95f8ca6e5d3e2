"""The options of a verb, read from its function's signature and docstring, for its help and for shells' completion."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from dqcore.cli.verbs import VERBS

__all__ = ["SHORT", "Option", "function_of", "options_of"]

#: Options of any verb that have a short name too.
SHORT = {"out": "-o"}

#: What a value of a type is called.
_NAMES = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


class _Kind(NamedTuple):
    """How an option's value is written."""

    type: Any
    choices: tuple[str, ...]
    many: bool


@dataclass(frozen=True)
class Option:
    """An option of a verb, or one of its positional arguments.

    Attributes:
        name: As in Python: ``"num_codes"``.
        flags: What is typed, such as ``("--out", "-o")``; none of a positional argument. Old names are not among them.
        old: Old names that are still read.
        value: What stands for the value, such as ``"PATH"`` or ``"{a,b}"``; empty for a switch.
        choices: All values there are, or none where they cannot be listed.
        many: Whether several values may follow.
        required: Whether it must be given.
        default: The value without it; None also stands for one that depends on other things.
        about: What it does, in one paragraph.
    """

    name: str
    flags: tuple[str, ...]
    old: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    many: bool
    required: bool
    default: Any
    about: str

    @property
    def positional(self) -> bool:
        """Whether it has no flag."""
        return not self.flags

    @property
    def switch(self) -> bool:
        """Whether it is turned on and off by its flag alone."""
        return bool(self.flags) and not self.value

    @property
    def typed(self) -> tuple[str, ...]:
        """Every word that names it: its flags, the ``--no-`` of a switch, and the old names of both."""
        long = [flag for flag in (*self.flags, *self.old) if flag.startswith("--")]
        return (*self.flags, *self.old, *(f"--no-{flag[2:]}" for flag in long if self.switch))


def function_of(verb: str) -> Callable[..., Any]:
    """The function that does what a verb says."""
    module, _, name = VERBS[verb].function.partition(":")
    return getattr(importlib.import_module(module), name)


def options_of(verb: str) -> list[Option]:
    """The options of a verb, positional arguments first."""
    return sorted(_read(function_of(verb)), key=lambda option: not option.positional)


def _read(function: Callable[..., Any]) -> Iterator[Option]:
    about = _descriptions(function)
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        plain, extras = _parted(hints[name])
        if dataclasses.is_dataclass(plain):
            yield from _read_fields(plain)
        else:
            default = parameter.default if parameter.default is not parameter.empty else dataclasses.MISSING
            yield _option(name, plain, extras, default, about.get(name, ""))


def _read_fields(options: Any) -> Iterator[Option]:
    """The fields of a dataclass that holds options."""
    about, hints = _descriptions(options), get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        yield _option(field.name, *_parted(hints[field.name]), field.default, about.get(field.name, ""))


def _option(name: str, plain: Any, extras: tuple[Any, ...], default: Any, about: str) -> Option:
    from tyro.conf import Positional

    positional = any(mark in get_args(Positional[int]) for mark in extras)
    aliases = [alias for mark in extras for alias in getattr(mark, "aliases", None) or ()]
    kind = _kind(plain)
    short = (SHORT[name],) if name in SHORT else ()
    flags = () if positional else (f"--{name.replace('_', '-')}", *short)
    return Option(
        name,
        flags,
        tuple(aliases),
        "" if kind.type is bool and not kind.choices else _value(name, kind, positional),
        kind.choices,
        kind.many,
        default is dataclasses.MISSING,
        None if default is dataclasses.MISSING else default,
        " ".join(about.replace("``", "").split()),
    )


def _value(name: str, kind: _Kind, positional: bool) -> str:
    word = "{" + ",".join(kind.choices) + "}" if kind.choices else _NAMES[kind.type]
    if positional and not kind.choices:
        word = name.upper()
    return f"{word} ..." if kind.many else word


def _kind(plain: Any) -> _Kind:
    """What the values of a type look like; None among them is left out, because nobody types it."""
    if get_origin(plain) in (Union, types.UnionType):
        (inner,) = (_parted(each)[0] for each in get_args(plain) if each is not type(None))
        kind = _kind(inner)
        return _Kind(bool, ("True", "False"), False) if inner is bool else kind
    if get_origin(plain) is tuple:
        return _kind(get_args(plain)[0])._replace(many=True)
    if get_origin(plain) is Literal:
        return _Kind(str, tuple(map(str, get_args(plain))), False)
    return _Kind(plain, (), False)


def _parted(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and what it was annotated with.

    Python 3.10 puts ``Optional`` around the whole hint of a parameter whose default is None, annotated or not.
    """
    if get_origin(hint) is Union:
        hint = next((each for each in get_args(hint) if get_origin(each) is Annotated), hint)
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _descriptions(documented: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute."""
    import docstring_parser

    found = {}
    parts = reversed(inspect.getmro(documented)[:-1]) if inspect.isclass(documented) else (documented,)
    for part in parts:  # of a class first those that it inherits from
        read = docstring_parser.parse_from_object if inspect.isclass(part) else _parse_function
        found.update({param.arg_name: param.description or "" for param in read(part).params})
    return found


def _parse_function(function: Callable[..., Any]) -> Any:
    import docstring_parser

    return docstring_parser.parse(function.__doc__ or "", style=docstring_parser.DocstringStyle.GOOGLE)
