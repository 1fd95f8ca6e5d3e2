"""Repeated launches of compiled kernels, in a process that interprets none: ``compiled_launches``."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("triton")
import triton

from dqcore.kernels import launch

CASES = Path(__file__).with_name("compiled_launches.py")


@pytest.mark.slow
@pytest.mark.skipif(not triton.__version__.startswith(launch.READ), reason="this Triton makes every launch itself")
def test_what_reaches_the_driver():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", CASES]
    env = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(CASES.parents[2]), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=CASES.parents[2])
    assert done.returncode == 0 and done.stdout.startswith("......."), done.stdout + done.stderr


def test_a_triton_that_was_not_read_is_not_asked_for_its_knobs(monkeypatch):
    """Triton 3.4, that of PyTorch 2.8, has fewer of them."""
    monkeypatch.setattr(launch, "SUPPORTED", False)
    monkeypatch.setattr(triton, "knobs", types.SimpleNamespace())
    assert not launch.is_free()
