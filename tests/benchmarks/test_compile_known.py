"""Which stored rows are not compiled again, and that everything which decides a row makes it another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import compile_check
import compile_known

ROOT = Path(__file__).parents[2]
ROWS = json.loads(compile_check.STORED.read_text())["rows"]

KERNEL = """
import triton
import triton.language as tl

SHIFT: tl.constexpr = tl.constexpr(2)


@triton.jit
def helper(x):
    return x * SHIFT


@triton.jit
def a_kernel(x, n, BLOCK: tl.constexpr):
    cells = tl.arange(0, BLOCK)
    tl.store(x + cells, helper(tl.load(x + cells, mask=cells < n)), mask=cells < n)
"""
SCRIPT = """
import os
import sys
from pathlib import Path

sys.path[:0] = sys.argv[1:]
import compile_check
import compile_known
import torch


class Everything(dict):
    def __contains__(self, digest):
        return True


compile_known.watch(Everything())  # nothing is compiled


def digest(source="k", dtype=torch.float32, block=16, warps=4, n=3, arch=80, readers=compile_known.READERS):
    found = []
    compile_known.READERS = readers
    compile_check.compiling(arch, lambda kernel, config, given, compiled: found.append(compiled.made_from))
    sys.modules.pop("k", None)
    sys.path.insert(0, str(Path(sys.argv[2]) / source))
    import k
    sys.path.pop(0)
    k.a_kernel[(1,)](torch.empty(64, device="meta", dtype=dtype), n, BLOCK=block, num_warps=warps)
    return found[0]


print(digest(), digest(), digest(n=5))
others = [{"source": "helper"}, {"source": "constant"}, {"source": "kernel"}, {"dtype": torch.float16}, {"block": 32}]
others += [{"warps": 8}, {"n": 16}, {"n": 1}, {"arch": 90}, {"readers": ("sass.py",)}]
found = [digest(**other) for other in others]
os.environ["DISABLE_LLVM_OPT"] = "1"
print(*found, digest())
"""


def test_whatever_decides_what_is_compiled_is_in_the_digest(tmp_path):
    """Compiles nothing. Numbers that Triton does not specialise decide nothing."""
    changed = {"k": ("", ""), "helper": ("x * SHIFT", "x + SHIFT"), "constant": ("(2)", "(3)"),
               "kernel": ("mask=cells < n)), mask", "mask=cells <= n)), mask")}  # fmt: skip
    for name, (old, new) in changed.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "k.py").write_text(KERNEL.replace(old, new) if old else KERNEL)
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "benchmarks"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    same, others = (line.split() for line in done.stdout.splitlines())
    assert len(same) == 3 and len({*same}) == 1
    assert len(others) == 11 and len({same[0], *others}) == 12


def test_a_row_of_each_kernel_is_compiled_all_the_same():
    anew = compile_known.again(ROWS)
    assert sorted(row["kernel"] for row in anew) == sorted({row["kernel"] for row in ROWS})
    assert {row["arch"] for row in anew} == {row["arch"] for row in ROWS}
    known = compile_check.unchanged(ROWS)
    assert len(known) == len(ROWS) - len(anew) and all(row not in anew for row in known.values())


def test_stored_rows_say_what_they_were_made_from():
    assert len({row["made_from"] for row in ROWS}) == len(ROWS)


def test_a_row_without_a_digest_is_compiled():
    without = [{name: value for name, value in row.items() if name != "made_from"} for row in ROWS]
    assert compile_check.unchanged(without) == {}
