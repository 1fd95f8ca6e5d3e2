"""No verb writes over what it reads, or among it where it would be read as more of the same."""

import shutil

import pytest


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(run, checkpoint, pictures, tmp_path, monkeypatch):
    """Photos, their streams and shards, and numbers measured on them; the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, tmp_path / "split" / "train")
    shutil.copytree(pictures, tmp_path / "split" / "val")
    model = ("--checkpoint", checkpoint, "--device", "cpu")
    for kind in ("dqc", "shards"):
        assert run("encode", pictures / "more", *model, "--format", kind, "--out", kind)[0] == 0
    assert run("evaluate", pictures / "more", *model, "--no-peers", "--json", "numbers.json")[0] == 0
    shutil.copy("numbers.json", "others.json")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("encode pictures/more --format shards --out dqc", "out: dqc holds codes of another format (dqc)"),
        ("encode pictures/more --format dqc --out shards", "out: shards holds codes of another format (None)"),
        ("train prior --codes shards --out shards", "out: shards holds the codes themselves"),
        ("train prior --codes shards --out dqc/../shards", "out: dqc/../shards holds the codes themselves"),
        ("evaluate --compare numbers.json others.json --json numbers.json", "json: numbers.json is one of the two"),
        ("evaluate --compare numbers.json others.json --json ./others.json", "json: others.json is one of the two"),
        ("reproduce router --data split --out split/train/results", "out: split/train/results lies in split/train"),
        ("reproduce router --data split --out split/val", "out: split/val lies in split/val"),
        ("reproduce router --test pictures --out pictures/x", "out: pictures/x lies in pictures"),
    ],
)
def test_what_is_read_stays_as_it_is(fails, checkpoint, folder, words, message):
    before = _files(folder)
    model = ("--checkpoint", checkpoint) if words.startswith("encode") else ()
    assert message in fails(*words.split(), *model)
    assert _files(folder) == before


def test_results_in_another_file_are_compared(run, folder):
    assert run(*["evaluate", "--compare", "numbers.json", "others.json", "--json", "both.json"])[0] == 0
