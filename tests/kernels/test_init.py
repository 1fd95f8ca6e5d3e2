"""The package of kernels itself."""

import ast
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


def test_no_function_of_a_kernel_calls_itself():
    """Nor itself through others: Triton 3.4 hashes a function with those it calls, and would not end."""
    calls = {}
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(each).startswith("triton.jit") for each in node.decorator_list
            ):
                calls[node.name] = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    for name, reached in calls.items():
        for _ in calls:
            reached = reached.union(*(calls.get(other, set()) for other in reached))
        assert name not in reached
