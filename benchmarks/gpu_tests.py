"""A plugin of pytest that keeps the tests which a GPU decides: ``pytest -p gpu_tests tests``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

#: Folders and files of which every test is kept: there the device is seldom in a test's name.
WHOLE = ("tests/kernels", "tests/ops", "tests/quantizer", "tests/test_quantizer.py", "tests/test_precompile.py")


def kept(name: str, marks: set[str]) -> bool:
    """Whether a GPU may decide this test: ``name`` is pytest's, from the root of the project on.

    Every op is tested on the CPU's routes, too, which are half of all tests and the same on any machine.
    """
    if "gpu" in marks:
        return True
    chosen = re.split(r"[\[\]-]", name.partition("[")[2])
    if name.startswith("tests/benchmarks") or ("cpu" in chosen and "cuda" not in chosen):
        return False
    return "slow" not in marks and (name.startswith(WHOLE) or "cuda" in name.lower() or "gpu" in name.lower())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the others out."""
    root = Path(__file__).resolve().parents[1]

    def name(item: pytest.Item) -> str:
        return item.path.relative_to(root).as_posix() + "::" + item.name if item.path.is_relative_to(root) else ""

    chosen = [item for item in items if kept(name(item), {mark.name for mark in item.iter_markers()})]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen
