"""The command line itself: its overview, its verbs, and what it makes of mistakes, bugs and interruptions."""

import re
import subprocess
import sys

import numpy as np
import pytest

import dqcore
import dqcore.cli.info
from dqcore import cli


def test_overview_lists_the_verbs(run):
    code, out, _ = run("--help")
    assert code == 0
    assert re.findall(r"^  ([\w-]+(?: \w+)?)  ", out, re.MULTILINE) == list(cli.VERBS)
    assert run("--version")[:2] == (0, f"dqcore {dqcore.__version__}\n")
    assert "train tokenizer" in run("train", "--help")[1]
    assert run()[0] == 2


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(run, verb):
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert out.startswith(f"usage: dqcore {verb}")


def test_a_process_of_its_own(run, tmp_path):
    done = subprocess.run([sys.executable, "-m", "dqcore", "encod"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "dqcore: error: there is no verb 'encod', did you mean 'encode'? dqcore --help lists them all\n"
    )


def test_help_imports_little(run):
    """Torch, which ``import dqcore`` needs, and tyro; nothing of training, pictures or pages."""
    script = """
import sys
from dqcore import cli
cli.main(["--help"])
heavy = {"PIL", "jinja2", "matplotlib", "rich.progress", "safetensors", "lpips", "dqcore.training"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "tokeniser"], "there is no verb 'train tokeniser', did you mean 'train tokenizer'"),
        (["encode", "x"], "--out"),
        (
            ["encode", "x", "--checkpoint", "y", "--out", "z", "--colour", "3"],
            "encode has no option --colour (see",
        ),
        (["evaluate", "x", "--checkpoint", "y", "--limit", "many"], "--limit"),
        (["evaluate", "missing", "--checkpoint", "y"], "missing: no such folder"),
        (["reconstruct", "--checkpoint", "y"], "images: expected at least one file"),
        (["reconstruct", "missing.png", "--checkpoint", "y"], "missing.png"),
        (["report", "missing"], "expected the folder of a training run"),
        (["convert", "missing.ckpt", "--config", "c", "--out", "o"], "missing.ckpt: no such file"),
        (["train", "tokenizer", "--data", "missing", "--perceptual", "none"], "missing: no such folder"),
        (["train", "tokenizer", "--data", "x", "--batch-size", "0"], "batch_size: expected at least 1"),
        (["demo", "--steps", "0"], "steps: expected at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(fails, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*args)
    assert list(tmp_path.iterdir()) == []


def test_bugs_keep_their_traceback(monkeypatch):
    def bug():
        return np.zeros(3).reshape(2, 2)  # a ValueError, but not one of ours

    monkeypatch.setattr("dqcore.cli.info.info", bug)
    with pytest.raises(ValueError, match="reshape"):
        cli.main(["info"])


def test_interruption(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("dqcore.cli.info.info", interrupt)
    assert run("info") == (130, "", "dqcore: interrupted\n")
