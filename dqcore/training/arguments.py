"""What the options of both stages have in common: checks of their values, old names, plain values for a file."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dqcore.errors import InputError

__all__ = ["Arguments", "renamed"]

Class = TypeVar("Class", bound=type)


class Arguments:
    """Base of the frozen dataclasses that hold every option of a run.

    Attributes:
        out: Folder of the run.
        resume: Continue the run in ``out``.
        log_every: Steps between two rows of metrics.
        validate_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        tensorboard: Also write TensorBoard events.
    """

    out: Path
    resume: bool
    log_every: int
    validate_every: int
    checkpoint_every: int
    tensorboard: bool

    def as_json(self) -> dict[str, Any]:
        """The options as plain values: a path becomes its text, a tuple a list."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}  # type: ignore[call-overload]

    # The checks below raise an InputError that names the option. None passes: it stands for an option not given.

    def _require(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise InputError(f"{name}: expected {expected}, got {value}")

    def _at_least(self, bound: int, *names: str) -> None:
        for name in names:
            self._require(name, f"at least {bound}", lambda value: value >= bound)

    def _more_than_0(self, *names: str) -> None:
        for name in names:
            self._require(name, "more than 0", lambda value: value > 0)

    def _below_1(self, *names: str, kind: str = "number") -> None:
        for name in names:
            self._require(name, f"a {kind} in [0, 1)", lambda value: 0 <= value < 1)

    def _not_both(self, one: str, other: str) -> None:
        if getattr(self, one) is not None and getattr(self, other) is not None:
            raise InputError(f"{one}: give either {one} or {other}, not both")


def renamed(**names: str) -> Callable[[Class], Class]:
    """Let a class still take keyword arguments by their old names, with a warning.

    Args:
        names: ``old="new"``.
    """

    def decorate(cls: Class) -> Class:
        init = cls.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **options: Any) -> None:
            for old in names.keys() & options.keys():
                message = f"{cls.__name__}: {old} is called {names[old]} now"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                options[names[old]] = options.pop(old)
            init(self, *args, **options)

        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    return decorate


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
