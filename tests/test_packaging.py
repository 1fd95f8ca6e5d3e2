"""The package as pip sees it: kernels/ is dqcore.kernels, every folder is listed, the wheel is whole."""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

import dqcore
from dqcore import backends

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_kernels_have_one_name():
    kernels = importlib.import_module("dqcore.kernels")
    assert Path(kernels.__file__).resolve().parent == ROOT / "kernels"
    assert (ROOT / "dqcore" / "kernels").is_symlink()
    assert os.readlink(ROOT / "dqcore" / "kernels") == "../kernels"
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "dqcore.kernels" in done.stderr


def test_every_package_is_listed():
    folders = {path.parent for path in (ROOT / "dqcore").glob("**/__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"dqcore.kernels"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_public_names_are_documented():
    from dqcore import ops

    for module in (dqcore, ops):
        for name in module.__all__:
            value = getattr(module, name)
            assert (value.__doc__ or "").strip(), f"{module.__name__}.{name} has no docstring"
    assert len(dqcore.__all__) <= 20


def test_version_has_one_source():
    assert dqcore.__version__ == PROJECT["project"]["version"]
    assert f"## [{dqcore.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_extension_was_built():
    """With a compiler, as in CI, the install must have built it; the record says why where it did not."""
    record = backends.build_record()
    assert record["extension"] == "built", record
    assert backends.extension() is not None


def copy_of_the_source(folder):
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        source, target = ROOT / name, folder / name
        if name.startswith(("tests/", "benchmarks/", "examples/")) or not os.path.lexists(source):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        else:
            target.write_bytes(source.read_bytes())


def source_distribution(folder):
    """The file that ``python -m build --sdist`` makes of ``folder / "source"``."""
    tools = folder / "tools"
    (setuptools,) = (name for name in PROJECT["build-system"]["requires"] if name.startswith("setuptools"))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", tools, setuptools], check=True)
    make = "from setuptools.build_meta import build_sdist; build_sdist('../sdist')"
    env = os.environ | {"PYTHONPATH": str(tools)}
    subprocess.run([sys.executable, "-c", make], cwd=folder / "source", env=env, check=True, capture_output=True)
    (file,) = (folder / "sdist").iterdir()
    return file


def build_wheel(folder, source, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "wheel", source]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "wheel").iterdir()
    return zipfile.ZipFile(wheel)


@pytest.mark.slow
def test_wheel_is_whole(tmp_path):
    """Even that of a source distribution, which has less than the checkout."""
    copy_of_the_source(tmp_path / "source")
    file = source_distribution(tmp_path)
    with tarfile.open(file) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"{path.relative_to(ROOT)}" for path in (ROOT / "csrc").rglob("*") if path.is_file()} <= packed
    assert not any(name.startswith("tests") for name in packed)
    quick = tmp_path / "c++"  # what is compiled well is what was installed
    quick.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" -O0 -fno-lto\n')
    quick.chmod(0o755)
    with build_wheel(tmp_path, file, CUDACXX="/bin/false", CXX=str(quick)) as wheel:
        names = wheel.namelist()
        record = wheel.read("dqcore/_build.json").decode()
    assert any(name.startswith("dqcore/_C") for name in names)
    for path in (*(ROOT / "kernels").glob("*.py"), *(ROOT / "kernels" / "tables").glob("*.json")):
        assert f"dqcore/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "dqcore" / "weights").glob("*/*"):
        assert f"{path.relative_to(ROOT)}" in names
    assert "dqcore/py.typed" in names
    assert any(name.startswith("dqcore/data/sample/") and name.endswith(".jpg") for name in names)
    assert "dqcore/data/sample/ATTRIBUTION.md" in names
    assert any(name.startswith("dqcore/report/") and name.endswith(".html") for name in names)
    assert not any(name.startswith(("kernels/", "tests/", "csrc/")) for name in names)
    assert "/bin/false could not build csrc/cuda" in record


@pytest.mark.slow
def test_no_compiler_still_installs(tmp_path):
    copy_of_the_source(tmp_path / "source")
    with build_wheel(tmp_path, tmp_path / "source", CUDACXX="/bin/false", CXX="/bin/false", CC="/bin/false") as wheel:
        names, record = wheel.namelist(), wheel.read("dqcore/_build.json").decode()
    assert not any(name.startswith("dqcore/_C") for name in names)
    assert "the C++ build failed" in record
