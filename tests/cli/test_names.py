"""Names that end lines, move a terminal's cursor or are no text are printed as something that does none of it."""

import ast
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from dqcore import printing

PACKAGE = Path(printing.__file__).parent
NAMES = {
    "a\nb.png": r"a\nb.png",
    "\r over.png": r"\r over.png",
    "\x1b[31mred.png": r"\x1b[31mred.png",
    "c1\x9b31m.png": r"c1\u009b31m.png",
    "turned\u202egnp.png": r"turned\u202egnp.png",
    os.fsdecode(b"caf\xe9.png"): r"caf\xe9.png",
    "für 猫 👩\u200d👧.png": "für 猫 👩\u200d👧.png",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=ascii)
def test_a_name_is_one_line_and_its_word_in_a_shell_is_itself(name, shown):
    assert printing.one_line(name) == shown
    word = f"it's \\ {name}"
    said = subprocess.run(["bash", "-c", f"printf %s {printing.typed(word)}"], capture_output=True, check=True)
    assert os.fsdecode(said.stdout) == word
    assert printing.one_line(printing.typed(word)) == printing.typed(word)


@pytest.mark.parametrize("words", ["reconstruct", "encode --format dqc", "encode --format shards", "data make"])
def test_no_verb_prints_a_name_as_it_is(run, checkpoint, tmp_path, words):
    photos, out = tmp_path / "photos\x1b[2J", tmp_path / "out\n"
    photos.mkdir()
    for name in NAMES:
        Image.new("RGB", (16, 16)).save(photos / name)
        (photos / f"broken{name}").write_bytes(b"no image")
    model = () if words == "data make" else ("--checkpoint", checkpoint)
    code, *texts = run(*words.split(), photos, *model, "--out", out)
    assert code == (0 if words == "data make" else 2)
    said = "".join(texts)
    assert [line for line in said.split("\n") if line != printing.one_line(line)] == []
    assert all(f"photos\\x1b[2J/broken{shown}: " in said for shown in NAMES.values()) and r"out\n" in said


def test_an_error_shows_the_name_that_was_given(fails, tmp_path):
    assert r"two\nlines\x1b[2J: no such" in fails("reconstruct", tmp_path / "two\nlines\x1b[2J")


def test_the_command_line_prints_through_one_function():
    prints = {}
    for path in PACKAGE.glob("cli/**/*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints[path.name] = sum(isinstance(call, ast.Name) and call.id == "print" for call in calls)
    assert {name: count for name, count in prints.items() if count} == {"dispatch.py": 2, "completion.py": 1}
