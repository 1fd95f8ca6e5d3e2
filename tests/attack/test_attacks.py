"""The attacks, in short: each is run by hand with many more cases."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "words", "counted"),
    [
        ("kill_runs.py", ("--kills", 2), "2 kills in"),
        ("damage_files.py", ("--cases", 13), "13 damaged files"),
        ("odd_words.py", ("--cases", 40), "40 of"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_nothing_is_lost_and_nothing_wrong(attack, words, counted):
    command = [sys.executable, str(Path(__file__).with_name(attack)), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted in done.stdout
