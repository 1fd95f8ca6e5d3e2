"""The help of every verb: what a person would write, of every option that the command line reads."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Optional

import pytest

from dqcore import cli
from dqcore.cli.dispatch import read_arguments
from dqcore.cli.groups import GROUPS
from dqcore.cli.help import verb_help
from dqcore.cli.options import _parted, function_of, options_of

VERBS = list(cli.VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_reads_as_a_person_wrote_it(verb):
    text = verb_help(verb)
    assert not re.search(r"\bNone\b|\{\[|\]\]|``|default: \(|\(default|│", text)
    assert max(map(len, text.splitlines())) <= 100
    assert f"\nexample: {cli.VERBS[verb].example}\n" in f"{text}\n"
    assert "dqcore" in cli.VERBS[verb].example


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained_in_a_group(verb):
    text, titles = verb_help(verb), {name for names in GROUPS.values() for name in names.split()}
    for option in options_of(verb):
        assert option.about, f"{option.name} is not described"
        assert option.positional or option.name in titles, f"{option.name} has no group in dqcore/cli/groups.py"
        assert option.positional or re.search(rf"^  (-\w, )?{option.flags[0]}\b", text, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_those_that_are_read(verb, capsys):
    """Ours, read from the signature, against those that tyro finds in it."""
    import tyro

    with pytest.raises(SystemExit):
        tyro.cli(function_of(verb), prog="dqcore", args=["--help"])
    theirs = set(re.findall(r"(?<![\w`-])(--[a-z][\w-]+)(?=[, ]|\s|$)", _left_column(capsys.readouterr().out)))
    ours = {word for option in options_of(verb) for word in option.typed if word.startswith("--")}
    assert ours == theirs - {"--help"}


def test_an_optional_around_an_annotation_hides_nothing():
    """As Python 3.10 puts one around the hint of every parameter whose default is None."""
    assert _parted(Optional[Annotated[Path | None, "mark"]]) == (Path | None, ("mark",))  # noqa: UP045


def _left_column(text):
    """Tyro's lines that begin with an option."""
    return "\n".join(line for line in text.splitlines() if re.match(r"^\W{1,3}-", line))


@pytest.mark.parametrize("verb", VERBS)
def test_where_results_go_has_a_short_name_everywhere(verb, fails):
    """Told of a wrong option, not of -o."""
    if "out" not in {option.name for option in options_of(verb)}:
        pytest.skip("it writes nothing")
    assert "  -o, --out PATH" in verb_help(verb)
    assert "--outer" in fails(*verb.split(), "-o", "somewhere", "--outer", "x")


def test_arguments_that_may_be_left_out_say_so():
    assert "usage: dqcore evaluate [IMAGES ...] [OPTIONS]" in verb_help("evaluate")
    assert "usage: dqcore encode PHOTOS ... --out PATH" in verb_help("encode")


def test_examples_parse():
    """Each example by the verb's own parser, up to the work itself."""
    for verb in VERBS:
        line = cli.VERBS[verb].example.split(" > ")[0]
        assert callable(read_arguments(verb, shlex.split(line)[1 + len(verb.split()) :]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode", "x", "--bp", "1"], "encode has no option --bp, did you mean --bpp?"),
        (["encode", "x", "--num_code=1"], "encode has no option --num-code, did you mean --num-codes?"),
        (["sample", "--bpp", "1"], "sample has no option --bpp; encode has it"),
        (["encode", "x", "--temprature", "1"], "sample and complete have --temperature"),
        (["train", "tokenizer", "--top-p", "1"], "train tokenizer has no option --top-p; sample and complete have it"),
        (["evaluate", "x", "--qqq"], "evaluate has no option --qqq (see dqcore evaluate --help)"),
    ],
)
def test_near_misses_are_offered_across_verbs(fails, args, message):
    assert message in fails(*args)


def test_old_names_are_still_read():
    call = read_arguments("evaluate", ["x", "--image-size", "64"])
    assert any(getattr(value, "size", None) == 64 for value in (*call.args, *call.keywords.values()))
    assert read_arguments("encode", ["x", "-o", "y", "--num_codes", "9"]).keywords["num_codes"] == 9


def test_what_the_package_shows():
    """Names for everyone in ``dir`` and ``help``, and nothing that was only imported."""
    import dqcore

    public = [name for name in dir(dqcore) if not name.startswith("_")]
    assert sorted(public) == sorted(dqcore.__all__)
    assert all(hasattr(dqcore, name) for name in dir(dqcore))
    done = subprocess.run([sys.executable, "-c", "import dqcore; help(dqcore)"], capture_output=True, text=True)
    assert "class DynamicQuantizer" in done.stdout
    assert "_MovedFinder" not in done.stdout
