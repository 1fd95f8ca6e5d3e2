"""What the options of both stages have in common: checks of their values, old names, plain values for a file."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dqcore.distributed import TIMEOUT
from dqcore.errors import InputError
from dqcore.files.sealed import read_sealed

__all__ = ["Arguments", "renamed"]

log = logging.getLogger(__name__)

Class = TypeVar("Class", bound=type)
Options = TypeVar("Options", bound="Arguments")

#: Options of which at most one is given: each says the same in another way.
RIVALS = (
    ("steps", "epochs", "minutes"),
    ("learning_rate", "base_learning_rate"),
    ("warmup_steps", "warmup_epochs"),
    ("codes", "data"),
    ("preprocessing", "crop"),
    ("preprocessing", "resize"),
)


class Arguments:
    """Base of the frozen dataclasses that hold every option of a run.

    Attributes:
        out: Folder of the run.
        resume: Continue the run in ``out``.
        log_every: Steps between two rows of metrics.
        validate_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        checkpoint_minutes: Minutes between two checkpoints, whichever comes first.
        keep_every: Steps between two models that are kept.
        tensorboard: Also write TensorBoard events.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}  # old names of options, and what they are called now
    #: Options that the records of older runs lack, with the values that those runs had.
    ADDED: ClassVar[dict[str, Any]] = {"accumulate": 1, "timeout": TIMEOUT}

    out: Path
    resume: bool
    log_every: int | None
    validate_every: int | None
    checkpoint_every: int
    checkpoint_minutes: float
    keep_every: int | None
    tensorboard: bool

    @classmethod
    def of_run(cls: type[Options], out: Path, /, **changes: Any) -> Options:
        """The options that the run in a folder was started with, to resume it.

        Args:
            out: The run's folder.
            **changes: Options to replace. An option that excludes others, such as ``steps``, also removes those. What
                differs is logged.

        Raises:
            FileNotFoundError: There is no run in this folder.
            ValueError: Its ``config.json`` cannot be read, or a value is out of range.
        """
        stored = _stored(cls, Path(out) / "config.json")
        for name in changes:
            for rival in {other for group in RIVALS if name in group for other in group} & stored.keys() - {name}:
                if changes[name] is not None and changes.get(rival) is None:
                    stored[rival] = None
        for name, value in changes.items():
            if name not in ("out", "resume") and stored.get(name) != value:
                log.info("%s: the run had %s, now %s", name, stored.get(name), value)
        return cls(**{**stored, **changes, "out": Path(out), "resume": True})

    def as_json(self) -> dict[str, Any]:
        """The options as plain values: a path becomes its text, a tuple a list."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}  # type: ignore[call-overload]

    # The checks below raise an InputError that names the option. None passes: it stands for an option not given.

    def _require(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        infinite = isinstance(value, float) and not math.isfinite(value)
        if value is not None and (infinite or not holds(value)):
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

    def _only_one(self, *names: str) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{given[0]}: give either {given[0]} or {given[1]}, not both")


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
        cls.RENAMED = names  # type: ignore[attr-defined]
        return cls

    return decorate


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _stored(cls: type[Arguments], path: Path) -> dict[str, Any]:
    """The options in a ``config.json``, by their present names."""
    if not path.is_file():
        raise FileNotFoundError(f"out: there is no run to resume in {path.parent}: config.json is missing")
    try:
        options = read_sealed(path)["options"]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"resume: {path} cannot be read ({error})") from error
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    stored = dict(cls.ADDED)
    if not isinstance(options, dict):
        raise InputError(f"resume: {path} cannot be read (its options are a {type(options).__name__})")
    for name, value in options.items():
        name = cls.RENAMED.get(name, name)
        if name not in fields:
            what = "that this version does not know, or it is another kind of run"
            raise InputError(f"resume: {path} has an option {name!r} {what}")
        stored[name] = value
    try:
        return dict(vars(cls(**stored)))
    except InputError as error:
        raise InputError(f"resume: {path} cannot be read ({error})") from error
