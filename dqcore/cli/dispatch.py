"""The command line, ``dqcore VERB``.

A mistake of the user (an argument, a file, a checkpoint) gets one line on stderr and exit code 2. So does a bug, with
exit code 1: the line says which file has its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
import re
import stat
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dqcore.cli.given import naming
from dqcore.cli.options import SHORT, Option, function_of, options_of
from dqcore.cli.output import unfailing_output
from dqcore.cli.signals import endable, ending_at_once
from dqcore.cli.verbs import VERBS
from dqcore.errors import DqcoreError, InputError
from dqcore.printing import say

__all__ = ["VERBS", "main", "read_arguments", "split_verb"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The words after ``dqcore``; by default those that the program was started with.

    Returns:
        The exit code: 0, 1 for a bug, 2 for a mistake of the user, 130 for an interruption, 143 for a termination.
    """
    words = list(sys.argv[1:] if args is None else args)
    if args is None:  # called as the program, not by another one
        warnings.showwarning = lambda message, *_, **__: say(f"dqcore: warning: {_joined(message)}", error=True)
    with unfailing_output() as lost:
        code = _outcome(words)
        if not code and (reason := lost()):
            _tell(f"error: all was done, but not all that it printed could be written ({reason})")
            return 2
    return code


def _outcome(words: list[str]) -> int:
    """Do what the words say, and return the exit code."""
    try:
        with endable():
            return _dispatch(words)
    except KeyboardInterrupt as stop:  # a training run that was stopped says more
        _tell(str(stop) or "interrupted")
        return int(getattr(stop, "exit_code", 130))
    except (DqcoreError, OSError) as error:
        _tell(f"error: {str(error).strip() or 'unknown error'}")
        return 2
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "dqcore").startswith("dqcore"):
            _tell(f"error: the module {error.name} is missing; dqcore installed with its dependencies has it")
            return 2
        if _is_out_of_memory(error):
            _tell(f"error: there is not enough memory for that {_joined(error)[:300]}".rstrip())
            return 2
        reason = _joined(f"{type(error).__name__}: {error}")
        if _is_lost_process(error):
            _tell(f"error: another process ended, or did not answer in time (--timeout): {reason[:300]}")
            return 1
        _tell(f"error: unexpected {reason[:300]} (traceback: {_keep_traceback()})")
        return 1


def _joined(message: object) -> str:
    """What others say in several lines, in one."""
    return " ".join(str(message).split())


def _tell(message: str) -> None:
    """Print why the program ends. Of several processes only the first to end prints."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from dqcore.distributed.failing import first_to_fail

        if not first_to_fail():
            return
    with contextlib.suppress(OSError, ValueError):  # so that the message comes last where both go to one file
        sys.stdout.flush()
    say(f"dqcore: {message}", error=True)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: a ``MemoryError`` of Python, or PyTorch's ``RuntimeError`` for machine or GPU."""
    refused = isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error))
    return isinstance(error, MemoryError) or bool(refused)


def _is_lost_process(error: Exception) -> bool:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from dqcore.distributed.failing import is_lost_process

    return is_lost_process(error)


def _keep_traceback() -> str:
    """Write the traceback of the present exception to a file, and return its name."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="dqcore-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            traceback.print_exc(file=file)
            return file.name
    except OSError as error:  # as on a full disk
        return f"none, {error}"


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        from dqcore.cli.help import overview

        print(overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from dqcore import __version__

        say(f"dqcore {__version__}")
        return 0
    verb, rest = split_verb(words)
    if verb is None or "-h" in rest or "--help" in rest:
        from dqcore.cli.help import overview, verb_help

        print(overview(words[0]) if verb is None else verb_help(verb))
        return 0
    _run(verb, rest)
    return 0


def _run(verb: str, words: list[str]) -> None:
    """Read the words as arguments of the verb's function, and call it."""
    with ending_at_once():
        function_of(verb)  # imports PyTorch
    call = read_arguments(verb, words)
    with naming(_in_full(words)):
        call()


def _in_full(words: Sequence[str]) -> list[str]:
    """The words with options by their full names."""
    full = {short: f"--{name}" for name, short in SHORT.items()}
    return [full.get(word, word) for word in words]


def read_arguments(verb: str, words: Sequence[str]) -> Callable[[], object]:
    """The verb's function with the words as its arguments, not called yet.

    Raises:
        InputError: The words are no arguments of this verb.
    """
    import tyro

    from dqcore.cli.complaint import in_plain_words
    from dqcore.cli.near import check_options

    words = _in_full(words)
    _check_words(verb, words)
    check_options(verb, words)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(_postponed(function_of(verb)), prog=f"dqcore {verb}", args=list(words))
    except SystemExit as stop:
        if stop.code != 2:
            raise
    positional = next((option.name for option in options_of(verb) if option.positional), "")
    raise InputError(f"{in_plain_words(complaint.getvalue(), positional)} (see dqcore {verb} --help)")


def _check_words(verb: str, words: Sequence[str]) -> None:
    """Refuse values that would be misread or never end: an empty text, a number beyond 64 bits, a pipe."""
    for name, value in _values(options_of(verb), words):
        if not value:
            raise InputError(f"{name}: expected something, got an empty text")
        if _is_no_file(value):
            raise InputError(f"{name}: {value} is a pipe or a device, expected a file or a folder")
        if re.fullmatch(r"[+-]?\d{19,}", value) and abs(int(value[:400])) >= 2**63:
            raise InputError(f"{name}: expected a number below 2**63, got {value[:40]}")


def _values(options: Sequence[Option], words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each value among the words, with the name of the option or of the positional argument that it belongs to."""
    named = {word: option for option in options for word in option.typed}
    positional = next((option for option in options if option.positional), None)
    current = positional
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in named:
            current = positional if named[flag].switch else named[flag]
            if not equals:
                continue
        yield current.name if current else "argument", value if flag in named else word
        current = current if current and current.many else positional


def _is_no_file(word: str) -> bool:
    """Whether a word is the path of something that is there, and is neither a file nor a folder."""
    try:
        mode = os.stat(word).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _postponed(function: Callable[..., object]) -> Callable[..., Callable[[], object]]:
    """The function's arguments and docstring, for tyro to read; calling it binds the arguments and does no work yet.

    So only the reading of arguments happens while stderr is redirected.
    """

    @functools.wraps(function)
    def bind(*args: Any, **options: Any) -> Callable[[], object]:
        return functools.partial(function, *args, **options)

    return bind


def split_verb(words: list[str]) -> tuple[str | None, list[str]]:
    """The verb, of one or two words, and the rest; None where help on a group of verbs is asked for."""
    pair = " ".join(words[:2])
    if pair in VERBS:
        return pair, words[2:]
    if words[0] in VERBS:
        return words[0], words[1:]
    group = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
    if group and words[1:2] in (["-h"], ["--help"]):
        return None, []
    if (group and len(words) < 2) or (words[1:2] and group and words[1].startswith("-")):
        raise InputError(f"{words[0]}: expected one of {', '.join(group)}")
    given = pair if group else words[0]
    nearest = difflib.get_close_matches(given, group or list(VERBS), n=1, cutoff=0.0)[0]
    raise InputError(f"there is no verb {given!r}, did you mean {nearest!r}? dqcore --help lists them all")
