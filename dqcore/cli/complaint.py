"""The error messages of tyro in one line, worded like our own."""

from __future__ import annotations

import itertools
import re

__all__ = ["in_plain_words"]

#: tyro's words for a kind of value, and ours.
_KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def in_plain_words(text: str, positional: str = "") -> str:
    """The message in tyro's box, reworded if a value has the wrong kind, or an argument is missing or too many.

    Args:
        text: What tyro printed.
        positional: Name of the verb's argument without a flag, for which tyro has the kind of its value alone.
    """
    complaint = _first_paragraph(text).partition(" For full helptext")[0]
    if found := re.search(r"parsing (\S+): no type matching (\S+) could be instantiated from \['(.*?)'\]", complaint):
        kind = next((words for name, words in _KINDS.items() if name in found[2]), found[2])
        return f"{found[1]}: expected {kind}, got {found[3]!r}"
    if found := re.search(r"parsing (\S+): invalid literal for int\(\) with base 10: (.*)", complaint):
        return f"{found[1]}: expected a whole number, got {found[2]}"
    if found := re.search(r"parsing (\S+): could not convert string to float: (.*)", complaint):
        return f"{found[1]}: expected a number, got {found[2]}"
    if found := re.search(r"invalid choice '(.*)' for argument '([^']+)'\. Expected one of \W(.*)\W\.", complaint):
        # tyro keeps them in a set, whose order is another in each process; a long name may be broken at its hyphen.
        # None is what leaving the option out gives: --help does not list it either.
        named = {choice.replace("- ", "-") for choice in re.findall(r"'([^']*)'", found[3])}
        choices = sorted(named - {"None"})
        return f"{found[2].split()[-1]}: expected one of {', '.join(choices)}, got {found[1]!r}"
    if found := re.match(r"Missing from dqcore (.+?): (?:-\w \S+, )?(\S+)", complaint):
        name = found[2] if found[2].startswith("-") else positional or found[2]
        return f"{name}: it is missing, dqcore {found[1]} needs it"
    return _of_several(complaint) or complaint


def _of_several(complaint: str) -> str:
    """What is wrong with the number of words, or with one of several values; empty if it is something else."""
    pair = r"parsing (\S+): no type matching \{None\}\|\{(\w+ [\w ]+)\} could be instantiated from \[(.*)\]"
    if found := re.search(pair, complaint):
        expected, given = len(found[2].split()), len(re.findall(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"", found[3]))
        return f"{found[1]}: expected {expected} values, got {given}"
    if found := re.search(r"parsing (\S+): Could not find valid parse for .*?\[(.*)\] Argument.*?\[(\w+)", complaint):
        kind = {"INT": "whole numbers", "FLOAT": "numbers"}.get(found[3], found[3])
        return f"{found[1]}: expected {kind}, got {found[2]}"
    if found := re.search(r"Missing value for argument '(\S+)'", complaint):
        return f"{found[1]}: expected a value, got none"
    if found := re.fullmatch(r"Unrecognized options: (.*)", complaint):
        return f"there is no argument for {found[1]!r}"
    return ""


def _first_paragraph(text: str) -> str:
    """What follows the box's title, up to the next rule or empty line."""
    lines = [line.strip(" │╭╮╰╯─").strip() for line in text.splitlines()]
    lines = [line for line in lines[1:] if not line or line.strip("-")]
    paragraph = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    return " ".join(paragraph) or "the arguments cannot be read"
