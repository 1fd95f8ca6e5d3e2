"""Options that a verb does not have or that are given twice: the error names what the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from dqcore.cli.options import options_of
from dqcore.cli.verbs import VERBS
from dqcore.errors import InputError

__all__ = ["check_options"]


def check_options(verb: str, words: Sequence[str]) -> None:
    """Refuse an option that is there twice, and one that the verb does not have; name the nearest, also of other verbs.

    Raises:
        InputError: There is one.
    """
    known, seen = _flags(verb), set[str]()
    for word in words:
        if word == "--":
            return
        flag = word.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise InputError(f"{verb} has no option {flag}{_hint(verb, flag, known)} (see dqcore {verb} --help)")
        if flag in seen:
            raise InputError(f"{flag.lstrip('-')}: it is there twice (see dqcore {verb} --help)")
        seen |= {flag} if flag.startswith("--") else set()


def _hint(verb: str, flag: str, known: Iterable[str]) -> str:
    """The same option of other verbs; or the option of this verb, then of others, that is spelled most alike."""
    flags = {other: _flags(other) for other in VERBS if other != verb}
    if having := [other for other, names in flags.items() if flag in names]:
        return f"; {_listed(having)} {'has' if len(having) == 1 else 'have'} it"
    if near := _nearest(flag, known):
        return f", did you mean {near}?"
    if near := _nearest(flag, {name for names in flags.values() for name in names}):
        having = [other for other, names in flags.items() if near in names]
        return f"; {_listed(having)} {'has' if len(having) == 1 else 'have'} {near}"
    return ""


def _nearest(flag: str, known: Iterable[str]) -> str:
    """The option that begins as this one does, else the most similar one; empty where none is like it."""
    names = sorted(known)
    longer = [name for name in names if name.startswith(flag)]
    return next(iter(longer or difflib.get_close_matches(flag, names, n=1, cutoff=0.7)), "")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _flags(verb: str) -> set[str]:
    return {word for option in options_of(verb) for word in option.typed if word.startswith("--")}
