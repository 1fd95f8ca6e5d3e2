import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import compile_check
import compile_measure
import sass

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "compile_check.py"
KEYS = {"kernel", "arch", "config", "registers", "stack_bytes", "shared_bytes", "instructions_per_element", "wgmma"}
TARGETS = (80, 86, 89, 90, 100, 120)
STORED = json.loads(compile_check.STORED.read_text())


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
    """What changed since the table was stored is compiled, and a row of each kernel; see ``compile_known.py``."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, "--changed", "--json", "-"]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.fixture
def counted(checked):
    """The record, where its instructions can be compared with the stored ones."""
    record = json.loads(checked.stdout)
    if record["triton"] != STORED["triton"]:
        assert "instructions are not held" in checked.stderr
        pytest.skip(f"instructions are held under Triton {STORED['triton']} alone, this is {record['triton']}")
    return record


@pytest.mark.slow
def test_every_kernel_fits_every_target(checked):
    """Whatever the version of Triton."""
    assert checked.returncode == 0, checked.stderr
    record = json.loads(checked.stdout)
    assert all(row.keys() >= KEYS for row in record["rows"])
    assert compile_check.failures(record["rows"]) == []
    assert {(row["kernel"], row["arch"]) for row in record["rows"]} == {
        (name, arch) for name in entry_points() for arch in TARGETS
    }


@pytest.mark.slow
def test_no_main_loop_grew(counted):
    assert compile_check.moved(counted["rows"], STORED["rows"]) == []


@pytest.mark.slow
def test_dropout_costs_little(counted):
    per_score = {}
    for row in counted["rows"]:
        words = row["config"].split()
        plain = row["arch"] == 90 and "q:bfloat16" in words and "LEFT=False" in words  # windows cost, too
        if plain and any(word.startswith("KEEP=") for word in words):
            dim, keep = (next(word for word in words if word.startswith(name)) for name in ("D=", "KEEP="))
            per_score[row["kernel"], dim, keep] = row["instructions_per_element"]
    assert len(per_score) >= 12 and len({kernel for kernel, *_ in per_score}) == 3
    for (kernel, dim, keep), count in per_score.items():
        assert count <= 2.2 * per_score[kernel, dim, "KEEP=256"], (kernel, dim, keep)


ROW = {"kernel": "k", "arch": 90, "config": "D=8", "stack_bytes": 0, "shared_bytes": 227 * 1024, "half_products": 1,
       "products": 2, "wgmma": 4, "wgmma_begun": 2, "tensor_products": 4, "instructions": 900,
       "instructions_per_element": 10.0, "around_per_element": 0.0}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"stack_bytes": 8}, "k on sm_90: 8 bytes of stack (D=8)"),
        ({"shared_bytes": 227 * 1024 + 1}, "k on sm_90: 232449 bytes of shared memory (D=8)"),
        ({"wgmma": 0}, "k on sm_90: half-precision products without wgmma (D=8)"),
        ({"wgmma": 0, "tensor_products": 0}, "k on sm_90: half-precision products without wgmma (D=8)"),
        ({"wgmma": 3}, "k on sm_90: half-precision products without wgmma (D=8)"),
        ({"wgmma_begun": 4}, "k on sm_90: each step of a product by wgmma waits for the one before (D=8)"),
        ({"instructions_per_element": None}, "k on sm_90: no loop found (D=8)"),
    ],
)
def test_failures_are_named(change, line):
    assert compile_check.failures([ROW]) == []
    assert compile_check.failures([ROW | change]) == [line]


def test_failures_that_are_none():
    float32 = {"half_products": 0, "wgmma": 0, "wgmma_begun": 0, "tensor_products": 0}
    ampere = {"arch": 80, "wgmma": 0, "wgmma_begun": 0, "shared_bytes": 0}
    of_one_step = {"products": 4, "wgmma_begun": 4}
    excused = [{"kernel": name, "wgmma": 0} for name in compile_check.WITHOUT_WGMMA]
    excused += [{"kernel": name, "instructions_per_element": None} for name in compile_check.WITHOUT_LOOP]
    for change in (float32, ampere, of_one_step, *excused):
        assert compile_check.failures([ROW | change]) == []


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"instructions_per_element": 10.5}, []),
        ({"instructions_per_element": 10.6}, ["k on sm_90: instructions_per_element 10.0 -> 10.6 (D=8)"]),
        ({"instructions_per_element": 9.4}, ["k on sm_90: instructions_per_element 10.0 -> 9.4 (D=8)"]),
        ({"instructions_per_element": None}, ["k on sm_90: instructions_per_element 10.0 -> None (D=8)"]),
        ({"around_per_element": 1.0}, ["k on sm_90: around_per_element 0.0 -> 1.0 (D=8)"]),
        ({"instructions": 9000}, []),
        ({"config": "D=9"}, ["k on sm_90: not stored (D=9)", "k on sm_90: only stored (D=8)"]),
    ],
)
def test_main_loops_are_held(change, lines):
    assert compile_check.moved([ROW | change], [ROW]) == lines


def test_without_a_loop_the_whole_program_is_held():
    row = ROW | {"instructions_per_element": None, "around_per_element": None}
    assert compile_check.moved([row | {"instructions": 940}], [row]) == []
    assert compile_check.moved([row | {"instructions": 950}], [row]) == ["k on sm_90: instructions 900 -> 950 (D=8)"]


def test_stored_table_covers_every_kernel():
    rows = STORED["rows"]
    assert {(row["kernel"], row["arch"]) for row in rows} == {
        (name, arch) for name in entry_points() for arch in TARGETS
    }
    assert compile_check.failures(rows) == []
    assert set(compile_check.WITHOUT_LOOP) | set(compile_check.WITHOUT_WGMMA) <= entry_points()
    assert set(compile_measure.ELEMENTS) <= entry_points()


def test_windows_and_narrow_heads_are_compiled_for_every_target():
    """They take more registers: bytes of stack that the plain cases did not have came to light with them."""
    for name in ("_varlen_attention_fwd_kernel", "_varlen_attention_dq_kernel", "_varlen_attention_dkv_kernel"):
        for arch in TARGETS:
            configs = [row["config"].split() for row in STORED["rows"] if (row["kernel"], row["arch"]) == (name, arch)]
            single = {"LEFT=True", "D=64", "q:float32", f"PRECISION={'bf16x6' if arch == 90 else 'tf32x3'}"}
            for kind in ({"LEFT=True", "prefix_lengths:int32", "D=128"}, {"LEFT=True", "D=256"}, {"D=80", "q:float16"},
                         single, {"PRECISION=tf32x3", "D=128"}):  # fmt: skip
                assert any(kind <= {*words} for words in configs), (name, arch, kind)


def test_every_launch_says_whether_products_and_sums_are_fused():
    """Triton's own default is about to change, and with it the bits."""
    assert [row for row in STORED["rows"] if "enable_fp_fusion=" not in row["config"]] == []


def test_versions_that_were_checked_are_noted(tmp_path, monkeypatch):
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in STORED["checked"].values())
    monkeypatch.setattr(compile_check, "STORED", tmp_path / "compile.json")
    compile_check.note({"triton": "1.0.0", "rows": [], "checked": {"1.0.0": "2026-11-27"}}, "1.1.0")
    written = json.loads((tmp_path / "compile.json").read_text())
    assert written["checked"].keys() == {"1.0.0", "1.1.0"} and written["triton"] == "1.0.0"


def test_kernels_take_few_arguments():
    """At most 20, helpers and launchers included; what belongs together is a tuple."""
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(args) <= 20, f"{path.name}: {node.name} has {len(args)} arguments"


def program(*lines):
    """Instructions four bytes apart, ``L<n>`` in them standing for the n-th one's address."""
    return [
        sass.Instruction(4 * i, re.sub(r"L(\d+)", lambda m: hex(4 * int(m[1])), line)) for i, line in enumerate(lines)
    ]


NESTED = program(
    "MOV R1, R2",
    "FADD R1, R1",  # 1: the outer loop
    "HMMA.16816.F32 R4, R5",  # 2: the inner one
    "FADD R1, R1",
    "@!P0 BRA L2",
    "FADD R1, R1",
    "@P1 BRA L1",
    "FADD R1, R1",  # 7: a longer loop without products
    "FADD R1, R1",
    "FADD R1, R1",
    "FADD R1, R1",
    "@P1 BRA L7",
    "EXIT",
    "BRA L13",  # what the assembler leaves at the end
)


def test_main_loop():
    assert sass.main_loop(NESTED, products=True) == (3, 3)
    assert sass.main_loop(NESTED, products=False) == (5, 0)
    assert sass.main_loop(NESTED[7:], products=True) is None
    assert sass.main_loop(program("MOV R1, R2", "EXIT", "BRA L2"), products=False) is None


def test_main_loop_of_equals_is_the_shortest():
    """That of tiles without a mask; scalar products count where there are no others."""
    masked = program("FFMA R1, R1", "FADD R1, R1", "@P0 BRA L0", "FFMA R1, R1", "@P0 BRA L3", "EXIT")
    assert sass.main_loop(masked, products=True) == (2, 0)
    most = program("FFMA R1, R1", "FFMA R1, R1", "@P0 BRA L0", "FFMA R1, R1", "@P0 BRA L3", "EXIT")
    assert sass.main_loop(most, products=True) == (3, 0)


def test_a_branch_back_is_not_always_a_loop():
    """A block moved behind the end returns to where it belongs."""
    moved = program("@P0 BRA L5", "FADD R1, R1", "FADD R1, R1", "FADD R1, R1", "EXIT", "FADD R1, R1", "BRA L2")
    assert sass.main_loop(moved, products=False) is None


@pytest.mark.parametrize("branch", ["BRA.U !UP0, L0", "BRA.DIV UR4, L0", "BRA P1, L0"])
def test_branches_with_a_condition_go_on(branch):
    assert sass.main_loop(program("FADD R1, R1", branch, "FADD R1, R1", "@P0 BRA L2", "EXIT"), products=False) == (2, 0)


def test_instructions_are_read():
    text = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;               /* 0x00000a00ff017b82 */
                                                                        /* 0x000fe20000000800 */
        /*0010*/              @!P0 BRA 0x0 ;                            /* 0xfffffffc00fc7947 */
    """
    expected = [(0, "LDC R1, c[0x0][0x28]"), (16, "@!P0 BRA 0x0")]
    assert sass.instructions(text) == expected
    assert sass.instructions(text.replace(" ;", "   &req={1} &wr=0x4   ?trans1;")) == expected
