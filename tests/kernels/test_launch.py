"""Repeated launches of compiled kernels, in a process that interprets none: ``compiled_launches``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CASES = Path(__file__).with_name("compiled_launches.py")


@pytest.mark.slow
def test_what_reaches_the_driver():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", CASES]
    env = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(CASES.parents[2]), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=CASES.parents[2])
    assert done.returncode == 0 and done.stdout.startswith("......."), done.stdout + done.stderr
