"""Imports point down only, those inside functions too; the compute layers know neither autograd nor nn."""

import ast
import subprocess
import sys

import layers
import pytest


def test_every_file_has_a_room_and_every_room_files():
    found = {layers.room_of(file) for file in layers.FILES}
    assert all(layers.rank(room) >= 0 for room in found), [room for room in found if layers.rank(room) < 0]
    assert set(layers.ROOMS) <= found, set(layers.ROOMS) - found


def test_no_two_rooms_share_a_rank():
    ranks = [layers.rank(layers.room_of(file)) for file in layers.FILES]
    assert len(set(ranks)) == len({layers.room_of(file) for file in layers.FILES})


def test_every_op_file_is_a_room_of_its_own():
    assert all(layers.room_of(file) == file for file in layers.FILES if file.startswith("ops/"))


@pytest.mark.parametrize("file", sorted(layers.FILES))
def test_imports_point_down(file):
    room = layers.room_of(file)
    for target, line in layers.imports(file):
        other = layers.room_of(target)
        assert other == room or layers.rank(other) < layers.rank(room), f"{file}:{line} imports {target}, above it"


def test_imports_by_name_are_seen(tmp_path, monkeypatch):
    path = tmp_path / "odd.py"
    path.write_text('import importlib\nimportlib.import_module("dqcore.cli.train")\n__import__("dqcore.report.run")\n')
    monkeypatch.setitem(layers.FILES, "odd", path)
    assert {target for target, _ in layers.imports("odd")} == {"cli/train", "report/run"}


def test_no_two_files_import_each_other():
    below = {file: {target for target, _ in layers.imports(file)} for file in layers.FILES}
    done: set[str] = set()

    def visit(file, above):
        assert file not in above, f"a cycle: {' -> '.join((*above, file))}"
        if file not in done:
            for target in below[file]:
                visit(target, (*above, file))
            done.add(file)

    for file in layers.FILES:
        visit(file, ())


def test_the_house_is_low():
    assert max(layers.floors().values()) <= 10
    modules = {file for file in layers.FILES if "/" not in file} - {"__init__", "__main__"}
    assert len(modules) <= 10


def test_files_and_functions_are_short():
    """Files have at most 250 lines, functions 60; kernels at most 20 arguments."""
    long = []
    for file, path in layers.FILES.items():
        text = path.read_text()
        long += [file] if text.count("\n") > 250 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                crowded = node.name.endswith("_kernel") and len(node.args.args) > 20
                long += [f"{file}: {node.name}"] if crowded or node.end_lineno - node.lineno >= 60 else []
    assert long == []


def test_kernels_need_torch_and_triton_alone():
    for file, path in layers.FILES.items():
        if file.startswith("kernels/"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    parts = name.split(".")
                    allowed = {"torch", "triton", *sys.stdlib_module_names}
                    assert parts[0] in allowed or parts[:2] == ["dqcore", "kernels"], f"{file}: {name}"
                    assert parts[:2] != ["torch", "nn"] and "autograd" not in parts, f"{file}: {name}"


def test_only_backends_looks_for_hardware():
    for file, path in layers.FILES.items():
        if file.partition("/")[0] in ("ops", "nn", "models", "quantizer", "codebook", "estimators"):
            text = path.read_text()
            assert "cuda.is_available" not in text, path
            assert "import triton" not in text and "from triton" not in text, path


def test_import_needs_torch_alone_and_leaves_no_trace(tmp_path):
    """A finder hides everything but torch and what torch itself imports."""
    script = """
import sys, torch, numpy
import torch._dynamo, torch.library
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"PIL", "safetensors", "huggingface_hub", "tyro", "rich", "jinja2", "matplotlib",
                                  "triton", "lpips", "torchvision"} and name not in sys.modules:
            raise ImportError("hidden: " + name)
sys.meta_path.insert(0, Hide())
import dqcore
dqcore.DynamicQuantizer(4, 8)(torch.randn(1, 4, 2, 2))
dqcore.DQVAE.from_preset("dqvae-dual-tiny")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_list_in_contributing_is_the_table():
    page = (layers.ROOT / "CONTRIBUTING.md").read_text()
    assert layers.written(page) == page, "python tests/layers.py writes it"
