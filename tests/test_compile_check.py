import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "compile_check.py"
KEYS = {"kernel", "arch", "config", "registers", "stack_bytes", "shared_bytes"}

spec = importlib.util.spec_from_file_location("compile_check", SCRIPT)
compile_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compile_check)


def entry_points():
    """Names of the kernels that launchers launch: ``@triton.jit`` functions called ``_<what>_kernel``."""
    names = set()
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                assert any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list), node.name
                names.add(node.name)
    return names


@pytest.fixture(scope="module")
def checked():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, SCRIPT, "--json", "-"], capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.mark.slow
def test_no_kernel_spills_or_exceeds_shared_memory(checked):
    assert checked.returncode == 0, checked.stderr
    rows = json.loads(checked.stdout)
    assert all(row.keys() >= KEYS for row in rows)
    assert [row for row in rows if row["stack_bytes"] > 0] == []
    assert [row for row in rows if row["shared_bytes"] > compile_check.LIMITS[row["arch"]]] == []


@pytest.mark.slow
def test_every_kernel_is_checked_for_every_target(checked):
    rows = json.loads(checked.stdout)
    assert {(row["kernel"], row["arch"]) for row in rows} == {
        (name, arch) for name in entry_points() for arch in (80, 86, 89, 90, 100, 120)
    }


@pytest.mark.slow
def test_dropout_costs_little_and_hopper_uses_its_tensor_cores(checked):
    rows = [
        row for row in json.loads(checked.stdout) if "instructions_per_score" in row and "q:bfloat16" in row["config"]
    ]
    assert all(row["wgmma"] > 0 for row in rows)
    per_score = {}
    for row in rows:
        dim, keep = (next(w for w in row["config"].split() if w.startswith(name)) for name in ("D=", "KEEP="))
        per_score[row["kernel"], dim, keep] = row["instructions_per_score"]
    assert len(per_score) == 18
    for (kernel, dim, keep), count in per_score.items():
        assert count <= 2.2 * per_score[kernel, dim, "KEEP=256"], (kernel, dim, keep)


def test_failures_are_named():
    row = {"kernel": "k", "arch": 89, "config": "D=8", "stack_bytes": 0, "shared_bytes": 99 * 1024}
    assert compile_check.failures([row]) == []
    bad = [{**row, "stack_bytes": 8}, {**row, "shared_bytes": 99 * 1024 + 1}]
    assert [line.split(" (")[0] for line in compile_check.failures(bad)] == [
        "k on sm_89: 8 bytes of stack",
        "k on sm_89: 101377 bytes of shared memory",
    ]


def test_committed_table_covers_every_kernel():
    rows = json.loads((ROOT / "benchmarks" / "results" / "compile.json").read_text())
    assert {row["kernel"] for row in rows} == entry_points()
    assert compile_check.failures(rows) == []
