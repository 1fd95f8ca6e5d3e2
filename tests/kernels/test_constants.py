"""Global constants of kernels are such that Triton compiles anew when they change: it keeps what it compiled on disk.

Of a constant that is a plain number with an annotation, within a tuple, of another module, or the default of a device
function's parameter its key has no value: what was compiled before would run on, and the table of compiled kernels
would not be made again.
"""

import ast
import importlib
import inspect
import math
import types
from pathlib import Path

import pytest

pytest.importorskip("triton")
import triton.language as tl

from dqcore import kernels

FILES = sorted(Path(inspect.getfile(kernels)).parent.glob("*.py"))


def compiled(tree):
    """The functions of a file that Triton compiles."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [one for one in functions if any("triton.jit" in ast.unparse(mark) for mark in one.decorator_list)]


def unseen(function, names):
    """What a function reads of the names of its file, if its value is in no key."""
    defaults = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
    found = [f"{function.name}: a default" for each in defaults if not isinstance(each, ast.Constant)]
    nodes = [node for line in function.body for node in ast.walk(line)]
    own = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for name in {node.id for node in nodes if isinstance(node, ast.Name)} - own:
        value = names.get(name)
        known = value is None or value in (tl, math) or isinstance(value, tl.constexpr) or hasattr(value, "fn")
        if not known and not (isinstance(value, types.ModuleType) and value.__name__.startswith("triton.")):
            found.append(f"{function.name}: {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_constants_are_in_the_key(path):
    names = vars(importlib.import_module(f"dqcore.kernels.{path.stem}")) if path.stem != "__init__" else {}
    assert [each for function in compiled(ast.parse(path.read_text())) for each in unseen(function, names)] == []


def test_what_is_unseen_is_found():
    names = {"PLAIN": 2, "PAIR": (tl.constexpr(1),), "other": types.ModuleType("other"), "tl": tl, "C": tl.constexpr(1)}
    source = "@triton.jit\ndef f(x, by=C, n=2):\n    PAIR[0] + PLAIN + other.C + C + tl.abs(x) + len(x)"
    (function,) = compiled(ast.parse(source))
    assert sorted(unseen(function, names)) == ["f: PAIR", "f: PLAIN", "f: a default", "f: other"]
