"""Imports point down only; the compute layers know neither autograd nor nn."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    ("backends", "codes", "files", "testing", "warmup", "kernels", "_C"),
    ("ops",),
    ("codebook", "estimators", "quantizer", "nn"),
    ("models", "convert", "convert_prior"),
    ("training", "evaluation", "report", "data"),
    ("demo", "demo_prior", "info", "verbs", "verbs_prior", "cli", "__main__", "__init__"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted([*ROOT.glob("dqcore/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer(path):
    parts = path.relative_to(ROOT).parts
    return "kernels" if parts[0] == "kernels" else Path(parts[1]).stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    mine = RANK[layer(path)]
    for name, line in imported(path):
        parts = name.split(".")
        if parts[0] == "dqcore":
            target = RANK[parts[1] if parts[1] in RANK else "__init__"]
            top = parts[1] not in RANK
            assert target <= mine or (top and mine >= RANK["models"]), f"{path}:{line} imports {name}, which lies above"
        if layer(path) == "kernels":
            assert parts[0] in {"torch", "triton", "dqcore", *sys.stdlib_module_names}, f"{path}:{line}"
            assert parts[:2] != ["torch", "nn"] and "autograd" not in parts, f"{path}:{line}"


def test_every_file_has_a_layer():
    assert all(layer(path) in RANK for path in FILES)


def test_only_backends_looks_for_hardware():
    for path in FILES:
        if layer(path) in ("ops", "nn", "models", "quantizer", "codebook", "estimators"):
            assert "cuda.is_available" not in path.read_text(), path
            assert not any(name.split(".")[0] == "triton" for name, _ in imported(path)), path


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
