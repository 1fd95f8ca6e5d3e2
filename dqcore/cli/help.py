"""The help of the command line, as a person would write it: the overview, and the page of each verb."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dqcore.cli.groups import GROUPS, REST, group_of
from dqcore.cli.options import Option, function_of, options_of
from dqcore.cli.verbs import VERBS

__all__ = ["overview", "verb_help"]

WIDTH = 100
_COLUMN = 28  # where the descriptions begin
_ENDS = ("Args:", "Returns:", "Raises:", "Attributes:")


def overview(group: str = "") -> str:
    """All verbs, or those whose name begins with ``group``."""
    shown = {name: verb for name, verb in VERBS.items() if name.startswith(group)}
    width = max(map(len, shown)) + 3
    lines = [f"  {name:<{width}}{verb.summary}" for name, verb in shown.items()]
    head = "usage: dqcore [--help | --version] VERB ...\n\nImage tokenizers whose code length follows the image.\n"
    example = f"example: {next(iter(shown.values())).example}"
    return "\n".join([head, *lines, "", example, "dqcore VERB --help lists a verb's options."])


def verb_help(verb: str) -> str:
    """A verb's usage, description, example, and options in groups."""
    options = options_of(verb)
    parts = [_usage(verb, options), *_description(verb), f"example: {VERBS[verb].example}"]
    flags = {option.name: option.flags[0] for option in options if option.flags and "_" in option.name}
    for title in ("arguments", *GROUPS, REST):
        members = [option for option in options if _title(option) == title]
        if members:
            parts.append("\n".join([f"{title}:", *(_entry(option, flags) for option in members)]))
    return "\n\n".join(parts)


def _title(option: Option) -> str:
    return "arguments" if option.positional else group_of(option.name)


def _usage(verb: str, options: list[Option]) -> str:
    words = [_call(option) for option in options if option.positional or option.required]
    words += ["[OPTIONS]"] if len(words) < len(options) else []
    line = " ".join(["usage: dqcore", verb, *words])
    return textwrap.fill(line, WIDTH, subsequent_indent=" " * 7, break_long_words=False, break_on_hyphens=False)


def _call(option: Option) -> str:
    """How an option is typed, with the name of its value: ``--out PATH``."""
    text = " ".join(filter(None, (option.flags[0] if option.flags else "", option.value)))
    needed = option.required or not option.positional
    return text if needed else f"[{text}]"


def _description(verb: str) -> Iterator[str]:
    """The paragraphs of the function's docstring above its sections."""
    for paragraph in (inspect.getdoc(function_of(verb)) or "").split("\n\n"):
        if paragraph.startswith(_ENDS):
            return
        yield textwrap.fill(" ".join(paragraph.replace("``", "").split()), WIDTH, break_on_hyphens=False)


def _entry(option: Option, flags: dict[str, str]) -> str:
    """An option's line, with what it does beside or below it; other options are called as they are typed."""
    names = ", ".join(sorted(option.flags, key=len))
    if option.switch and option.default:
        names = f"{names}, --no-{option.flags[0][2:]}"
    left = f"  {' '.join(filter(None, (names, option.value)))}"
    about = re.sub(r"\w+_\w+", lambda name: flags.get(name[0], name[0]), _about(option))
    text = textwrap.wrap(about, WIDTH - _COLUMN, break_on_hyphens=False) or [""]
    if len(left) <= _COLUMN - 2:
        left, text = f"{left:<{_COLUMN}}{text[0]}", text[1:]
    return "\n".join([left, *(" " * _COLUMN + line for line in text)])


def _about(option: Option) -> str:
    """What it does, and the value without it, unless that goes without saying or is told already."""
    if option.required:
        return f"{option.about} Required."
    default = option.default
    if default is None or default is False or default == () or "efault" in option.about:
        return option.about
    return f"{option.about} Default: {_shown(default)}."


def _shown(value: Any) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    return "on" if value is True else str(value)
