"""The package of kernels itself."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_kernels_have_one_name():
    """A second import as ``kernels`` would compile and cache everything twice."""
    path = ROOT / "kernels" / "__init__.py"
    spec = importlib.util.spec_from_file_location("kernels", path)
    with pytest.raises(ImportError, match=r"import dqcore\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
