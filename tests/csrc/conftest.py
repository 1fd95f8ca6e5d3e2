"""The CUDA kernels of csrc as a module for the CPU, through ``cuda_on_cpu``."""

import importlib.util
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dqcore import backends

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or "c++"


def build(folder: Path) -> Path:
    """Compile csrc with its CUDA sources as C++ into an extension module."""
    pybind11 = pytest.importorskip("pybind11")
    sources = [path for pattern in ("*.cpp", "cpu/*.cpp", "cuda/*.cu") for path in (ROOT / "csrc").glob(pattern)]
    sources.append(Path(__file__).parent / "cuda_on_cpu" / "watch.cpp")
    includes = [Path(__file__).with_name("cuda_on_cpu"), ROOT / "csrc"]
    includes += [Path(pybind11.get_include()), Path(sysconfig.get_path("include"))]
    flags = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-Wall", "-DDQCORE_CUDA"]
    flags += [f"-I{path}" for path in includes]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}_{source.name}.o"
        watched = ["-fsanitize=thread"] if source.suffix == ".cu" else []  # what it calls is in watch.cpp
        watched += ["-O2"] if source.name == "watch.cpp" else []
        subprocess.run([COMPILER, *flags, *watched, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = [str(path) for path in pool.map(compile_one, sources)]
    module = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([COMPILER, "-shared", *objects, "-o", str(module), "-lpthread"], check=True)
    return module


class OnCpu:
    """The extension with its CUDA functions in the places of the CPU ones."""

    def __init__(self, module):
        self._module = module
        self.has_cuda = True
        self.launches = 0

    def __getattr__(self, name: str):
        if not name.endswith("_cpu"):
            return getattr(self._module, name)

        def launch(*arguments):
            self.launches += 1
            error = getattr(self._module, name.replace("_cpu", "_cuda"))(*arguments[:-1], self._module.Stream(0, 0))
            assert error == 0

        return launch


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("_C", build(tmp_path_factory.mktemp("csrc")))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def on_cpu(module, monkeypatch):
    fake = OnCpu(module)
    monkeypatch.setattr(backends, "extension", lambda: fake)
    yield fake
    assert fake.launches > 0
