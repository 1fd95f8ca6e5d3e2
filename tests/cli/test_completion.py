"""Completion scripts, run by the shells themselves."""

import shutil
import subprocess

import pytest

from dqcore import cli
from dqcore.cli.completion import script

#: What was typed, the last word unfinished, and what must be offered, or must not.
CASES = [
    (["dqcore", ""], {"encode", "train", "completion"}, {"tokenizer"}),
    (["dqcore", "enc"], {"encode"}, {"train"}),
    (["dqcore", "train", ""], {"tokenizer", "prior"}, {"encode"}),
    (["dqcore", "train", "tokenizer", "--res"], {"--resize", "--resume", "--restart"}, {"--recipe"}),
    (["dqcore", "encode", "x.png", "--b"], {"--bpp", "--bytes", "--batch-size"}, {"--steps"}),
    (["dqcore", "encode", "--format", ""], {"auto", "dqc", "shards"}, {"--bpp"}),
    (["dqcore", "train", "prior", "--recipe", "p"], {"photos", "paper"}, {"small"}),
    (["dqcore", "completion", ""], {"bash", "zsh", "fish"}, {"encode"}),
]
ASK = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dqcore; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(script(shell))
    return folder


def ask(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def shell(name):
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize(
    ("words", "offered", "others"),
    CASES,
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_bash(scripts, words, offered, others):
    found = set(ask(shell("bash"), "-c", f"source {scripts / 'bash'}; {ASK}", "bash", *words).split())
    assert offered <= found
    assert not others & found


def test_bash_completes_after_an_equals_sign(scripts):
    """Bash makes three words of ``--format=d``."""
    words = ["dqcore", "encode", "--format", "=", "d"]
    assert ask(shell("bash"), "-c", f"source {scripts / 'bash'}; {ASK}", "bash", *words).split() == ["dqc"]


@pytest.mark.parametrize(
    ("words", "offered", "others"),
    CASES,
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_fish(scripts, words, offered, others):
    line = " ".join(words)
    out = ask(shell("fish"), "-N", "-c", f"source {scripts / 'fish'}; complete -C '{line}'")
    found = {entry.split("\t")[0] for entry in out.splitlines()}
    assert offered <= found
    assert not others & found


def test_zsh_reads_it(scripts):
    """Zsh completes only on a terminal; it must at least read the script and know the function."""
    load = f"autoload -U compinit; compinit -u -D; source {scripts / 'zsh'}; print $_comps[dqcore]; whence -w _dqcore"
    assert ask(shell("zsh"), "-f", "-c", load).split() == ["_dqcore", "_dqcore:", "function"]


def test_the_verb_prints_it(run):
    assert run("completion", "bash")[:2] == (0, script("bash") + "\n")
    assert run("completion", "tcsh")[0] == 2


def test_every_verb_is_there(scripts):
    for verb in cli.VERBS:
        assert f'"{verb}")' in (scripts / "bash").read_text()
        assert f'"{verb}")' in (scripts / "zsh").read_text()
