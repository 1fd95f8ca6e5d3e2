"""What type checkers see of the package in a user's script, installed as the README says."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """\
import torch
import dqcore

x = torch.zeros(1, 64, 4, 4)
quantizer = dqcore.DynamicQuantizer(64, 256)
reveal_type(quantizer(x))
model = dqcore.DQVAE.from_preset("dqvae-dual-tiny")
reveal_type(model)
reveal_type(model(x))
reveal_type(model.encode(x))
sequence = dqcore.pack_codes(x, x)
reveal_type(sequence)
prior = dqcore.DQTransformer.from_preset("dqtransformer-tiny")
reveal_type(prior(sequence))
reveal_type(dqcore.VQGAN.from_pretrained("x")(x))
"""
TYPES = ["Quantized", "DQVAE", "TokenizerOutput", "Encoding", "CodeSequence", "PriorOutput", "TokenizerOutput"]


@pytest.fixture
def script(tmp_path):
    """A user's script, in a folder from which the checkout cannot be seen."""
    found = json.loads(importlib.metadata.distribution("dqcore").read_text("direct_url.json") or "{}")
    if found.get("dir_info", {}).get("editable") and not installed_by_path():
        pytest.skip("dqcore was installed before setup.py had PACKAGE_DIR: pip install -e . again")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def installed_by_path():
    """Whether the installation is a path that type checkers can follow."""
    files = [path for folder in map(Path, sys.path) for path in folder.glob("__editable__*.pth")]
    return any((Path(line) / "dqcore").is_dir() for path in files for line in path.read_text().splitlines())


def revealed(command, script):
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    found = re.findall(r"(?:Revealed type is|Type of .+ is) \"([^\"]+)\"$", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return [re.sub(r"^tuple\[.*fallback=|\]$", "", name).split(".")[-1] for name in found]


@pytest.mark.slow
def test_mypy_sees_real_types(script):
    pytest.importorskip("mypy")
    cache, options = script.parent / "cache", []
    if (ROOT / ".mypy_cache").is_dir():  # what mypy knows of PyTorch, with the options under which it learned it
        shutil.copytree(ROOT / ".mypy_cache", cache)
        options = ["--config-file", ROOT / "pyproject.toml"]
    command = [sys.executable, "-m", "mypy", "--cache-dir", cache, *options, script.name]
    assert revealed(command, script) == TYPES


@pytest.mark.slow
def test_pyright_sees_real_types(script):
    program = shutil.which("basedpyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if program is None:
        pytest.skip("neither basedpyright nor pyright is installed")
    assert revealed([program, "--pythonpath", sys.executable, script.name], script) == TYPES
