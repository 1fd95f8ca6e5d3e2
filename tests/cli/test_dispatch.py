"""The command line itself: its overview, its verbs, and what it makes of mistakes, bugs and interruptions."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dqcore
import dqcore.cli.info
from dqcore import cli
from dqcore.errors import InputError
from dqcore.files import write_atomically


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
    """A typo is answered without PyTorch, which takes seconds to import."""
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(dqcore.__file__).parents[1])])
    command, environment = [sys.executable, "-m", "dqcore", "encod"], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "dqcore: error: there is no verb 'encod', did you mean 'encode'? dqcore --help lists them all\n"
    )


def test_help_imports_little(run):
    """Nothing but the verbs; a program that is called as the command line is still finds every public name."""
    script = """
import sys
sys.argv[0] = "/somewhere/dqcore"
from dqcore import cli
cli.main(["--help"])
heavy = {"PIL", "jinja2", "matplotlib", "rich.progress", "safetensors", "lpips", "dqcore.training"} & set(sys.modules)
assert not heavy and "torch" not in sys.modules, heavy
import dqcore
assert dqcore.DQVAE.PRESETS and all(hasattr(dqcore, name) for name in dqcore.__all__)
assert not hasattr(dqcore, "nothing")
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


def test_a_bug_is_one_line_that_names_its_traceback(monkeypatch, run):
    def bug():
        return np.zeros(3).reshape(2, 2)  # a ValueError, but not one of ours

    monkeypatch.setattr("dqcore.cli.info.info", bug)
    code, _, err = run("info")
    line = re.fullmatch(r"dqcore: error: unexpected ValueError: .*reshape.* \(traceback: (.+)\)\n", err)
    assert code == 1 and line
    kept = Path(line[1])
    assert "in bug" in kept.read_text()
    kept.unlink()


def test_a_package_that_is_missing_is_no_bug(monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.setattr("dqcore.cli.info.info", lambda: __import__("tyro"))
    assert "error: the module tyro is missing; dqcore" in fails("info")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 10 bytes")],
    ids=str,
)
def test_too_little_memory_is_no_bug(fails, monkeypatch, error):
    def large():
        raise error

    monkeypatch.setattr("dqcore.cli.info.info", large)
    assert "error: there is not enough memory for that" in fails("info")


@pytest.mark.parametrize(
    "words", [("convert", "x.ckpt", "--out", "y", "--config"), ("report", "x", "--out"), ("encode",)]
)
def test_pipes_are_never_opened(fails, tmp_path, words):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a pipe or a device, expected a file or a folder" in fails(*words, tmp_path / "pipe")


def test_termination_is_one_line_and_closes_what_is_open(run, monkeypatch, tmp_path):
    def ended():
        write_atomically(tmp_path / "file", lambda file: os.kill(os.getpid(), signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("dqcore.cli.info.info", ended)
    assert run("info") == (143, "", "dqcore: terminated\n")
    assert signal.getsignal(signal.SIGTERM) is before and list(tmp_path.iterdir()) == []


def _printing(tmp_path, monkeypatch, stream, encoding="utf-8"):
    """A verb that prints, works and prints again, with this file as both streams; gives its exit code."""

    def work():
        for name in ("first", "second"):
            print("\u00b1 caf\udce9", flush=True)
            print("some lines", file=sys.stderr)
            (tmp_path / name).touch()

    monkeypatch.setattr("dqcore.cli.info.info", work)
    with open(stream, "w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        code = cli.main(["info"])
        assert (tmp_path / "second").exists() and sys.stdout is file
    return code


def test_work_goes_on_when_nobody_reads_on(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    assert _printing(tmp_path, monkeypatch, writer) == 0


def test_an_error_is_the_last_line_of_a_log(tmp_path, monkeypatch):
    def fail():
        print("1 of 2 done")
        raise InputError("1 was not done")

    monkeypatch.setattr("dqcore.cli.info.info", fail)
    with open(tmp_path / "log", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        assert cli.main(["info"]) == 2
    assert (tmp_path / "log").read_text() == "1 of 2 done\ndqcore: error: 1 was not done\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_under_stdout_is_an_error_after_the_work(tmp_path, monkeypatch):
    assert _printing(tmp_path, monkeypatch, "/dev/full") == 2


def test_any_character_can_be_printed_in_any_encoding(tmp_path, monkeypatch):
    assert _printing(tmp_path, monkeypatch, tmp_path / "out", encoding="ascii") == 0
    assert (tmp_path / "out").read_bytes().splitlines()[0] == b"\\xb1 caf\xe9"


@pytest.mark.parametrize("error", [ValueError("not a safetensors file"), InputError("damaged"), None])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interruption_that_a_library_takes_for_something_else(run, monkeypatch, number, code, error):
    def ended():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if error is not None:
                raise error from None

    monkeypatch.setattr("dqcore.cli.info.info", ended)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        assert run("info") == (code, "", f"dqcore: {'terminated' if number == signal.SIGTERM else 'interrupted'}\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode", "x.png", "--out", ""], "out: expected something"),
        (["encode", "x.png", "--out="], "out: expected something"),
        (["sample", ""], "prior: expected something"),
        (["encode", "x.png", ""], "photos: expected something"),
        (["encode", "x.png", "-o", ""], "out: expected something"),
        (["evaluate", "x", "--ratios", "0.5", ""], "ratios: expected something"),
        (["decode", "--overwrite", "", "-o", "x"], "codes: expected something"),
        (["info", ""], "argument: expected something"),
        (["sample", "--seed", "99999999999999999999"], r"seed: expected a number below 2**63"),
        (["demo", "--steps=99999999999999999999"], r"steps: expected a number below 2**63"),
    ],
    ids=str,
)
def test_empty_texts_and_huge_numbers(fails, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*args)
    assert list(tmp_path.iterdir()) == []


def test_interruption(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("dqcore.cli.info.info", interrupt)
    assert run("info") == (130, "", "dqcore: interrupted\n")


def test_an_interruption_while_the_program_starts_is_silent(tmp_path):
    """PyTorch takes seconds to import; this one interrupts the program meanwhile."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(dqcore.__file__).parents[1])])
    command = [sys.executable, "-m", "dqcore", "info"]

    def heed() -> None:  # where the tests run in the background of a shell, SIGINT is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=heed)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
