"""The command line, ``dqcore <verb>``.

A mistake of the user's (an argument, a file, a checkpoint) is one line on stderr and exit code 2; a bug keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tyro

from dqcore.cli.convert import convert
from dqcore.cli.demo import demo
from dqcore.cli.encode import encode
from dqcore.cli.evaluate import evaluate
from dqcore.cli.info import info
from dqcore.cli.reconstruct import reconstruct
from dqcore.cli.report import report
from dqcore.cli.sample import sample
from dqcore.cli.train import train_prior, train_tokenizer
from dqcore.errors import DqcoreError, InputError

__all__ = ["main"]


def _training_options() -> Callable[..., Any]:
    from dqcore.training import TokenizerTraining

    return TokenizerTraining


def _prior_options() -> Callable[..., Any]:
    from dqcore.training.prior.run import PriorTraining

    return PriorTraining


def _deferred(function: Callable[..., None]) -> Callable[[], Callable[..., Any]]:
    """What reads a function's arguments without calling it yet."""

    @functools.wraps(function)
    def bind(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(function, *args, **options)

    return lambda: bind


class _Verb(NamedTuple):
    """A verb: its line in the overview, what tyro reads the arguments into, and what is then done with that."""

    summary: str
    arguments: Callable[[], Callable[..., Any]]
    run: Callable[[Any], None] = lambda call: call()


VERBS = {
    "demo": _Verb("train a small tokenizer and prior on sample photographs, and write a report", _deferred(demo)),
    "train tokenizer": _Verb("train a tokenizer on a folder of images", _training_options, train_tokenizer),
    "train prior": _Verb("train a prior on a tokenizer's codes", _prior_options, train_prior),
    "sample": _Verb("draw images from a prior", _deferred(sample)),
    "encode": _Verb("encode a folder of images to codes and grain maps", _deferred(encode)),
    "reconstruct": _Verb("encode and decode images, and show what came back", _deferred(reconstruct)),
    "evaluate": _Verb("measure a tokenizer on a folder of images", _deferred(evaluate)),
    "report": _Verb("write the report of a training run", _deferred(report)),
    "convert": _Verb("convert a checkpoint of the paper's authors", _deferred(convert)),
    "info": _Verb("show versions, devices, kernels and presets", _deferred(info)),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a mistake of the user's, 130 for an interruption."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("dqcore: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DqcoreError, OSError) as error:
        print(f"dqcore: error: {_one_line(str(error))}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from dqcore import __version__

        print(f"dqcore {__version__}")
        return 0
    verb, rest = _split_verb(words)
    if verb is None:
        print(_overview(words[0]))
        return 0
    VERBS[verb].run(_parse(verb, rest))
    return 0


def _parse(verb: str, words: list[str]) -> Any:
    """Read arguments; tyro's boxed complaint becomes one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(VERBS[verb].arguments(), prog=f"dqcore {verb}", args=words)
    except SystemExit as stop:
        if stop.code != 2:
            raise
    raise InputError(f"{_first_paragraph(complaint.getvalue())} (see dqcore {verb} --help)")


def _first_paragraph(text: str) -> str:
    """The message of tyro's box: what follows its title, up to the next rule or empty line."""
    lines = [line.strip(" │╭╮╰╯─").strip() for line in text.splitlines()]
    lines = [line for line in lines[1:] if not line or line.strip("-")]
    paragraph = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    return " ".join(paragraph) or "the arguments cannot be read"


def _overview(group: str = "") -> str:
    shown = {name: verb.summary for name, verb in VERBS.items() if name.startswith(group)}
    width = max(map(len, shown)) + 3
    lines = [f"  {name:<{width}}{summary}" for name, summary in shown.items()]
    head = "usage: dqcore [--help | --version] VERB ...\n\nImage tokenizers whose code length follows the image.\n"
    return "\n".join([head, *lines, "", "dqcore VERB --help lists a verb's options."])


def _split_verb(words: list[str]) -> tuple[str | None, list[str]]:
    """The verb, of one or two words, and the rest; None where help on a group of verbs is asked for."""
    pair = " ".join(words[:2])
    if pair in VERBS:
        return pair, words[2:]
    if words[0] in VERBS:
        return words[0], words[1:]
    group = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
    if group and words[1:2] in (["-h"], ["--help"]):
        return None, []
    given = pair if group else words[0]
    nearest = difflib.get_close_matches(given, group or list(VERBS), n=1, cutoff=0.0)[0]
    raise InputError(f"there is no verb {given!r}, did you mean {nearest!r}? dqcore --help lists them all")


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "unknown error"
