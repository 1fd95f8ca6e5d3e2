"""csrc as CMake builds it, every warning an error, for every GPU it ships for; and what nvcc made of it."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dqcore import backends

ROOT = Path(__file__).parents[2]
ARCHS = (80, 86, 89, 90, 100, 120)
NVCC = shutil.which("nvcc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs c++"),
]


def build(folder: Path, *options: str, only: str = "all") -> str:
    """Build all or one target with the tools that setup.py finds, warnings as errors; what the compilers said."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("dqcore_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    try:
        configure = [*setup.configure_command(), "-B", str(folder), "-DDQCORE_WERROR=ON", *options]
    except setup.BuildError as error:
        pytest.skip(str(error))
    said = ""
    for command in (configure, [configure[0], "--build", str(folder), "--verbose", "--target", only]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        said += done.stdout
    return said


def test_cpu_without_a_warning(tmp_path):
    """With nvcc only the file that differs without CUDA: the others are built below, with the same flags."""
    assert all(
        "DQCORE_CUDA" not in path.read_text() for path in (ROOT / "csrc").rglob("*.*") if path.name != "module.cpp"
    )
    said = build(tmp_path, only="all" if NVCC is None else "CMakeFiles/_C.dir/csrc/module.cpp.o")
    assert all(flag in said for flag in ("-Wall", "-Wextra", "-Werror"))
    assert list(tmp_path.rglob("module.cpp.o"))


def test_cuda_without_a_warning(tmp_path):
    if NVCC is None:
        pytest.skip("needs nvcc")
    said = build(tmp_path, "-DDQCORE_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90-real")  # the others differ in ptxas alone
    assert all(flag in said for flag in ("-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-Xcompiler=-Werror"))
    assert re.search(r"-Wall -Wextra -O3.* -Werror .*csrc/cpu/", said)
    assert list(tmp_path.glob("_C*"))


@pytest.fixture(scope="module")
def shipped():
    """What cuobjdump says of the installed extension, when asked."""
    extension = backends.extension()
    if extension is None or "built with" not in backends.build_record()["cuda"]:
        pytest.skip("needs an extension that nvcc built")
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton")
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def say(option):
        return subprocess.run([tool, option, extension.__file__], capture_output=True, text=True, check=True).stdout

    return say


def test_no_cuda_kernel_spills(shipped):
    arch, name, found = None, None, {}
    for line in shipped("-res-usage").splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.search(r"Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found[arch, name] = int(match[1]), int(match[2])
    names = {name for arch, name in found if arch == 90}
    assert len(names) >= 5 * 3 - 1  # five files; features in three types
    assert found == {(arch, name): (0, 0) for arch in ARCHS for name in names}


@pytest.fixture(scope="module")
def accesses(shipped):
    """How many loads and stores of 16 bytes each kernel has for each target: ``{(arch, name): (loads, stores)}``."""
    found = {}
    arch = name = None
    for line in shipped("-sass").splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.search(r"Function : (\w+)", line):
            name = match[1]
            found[arch, name] = [0, 0]
        elif match := re.search(r"\b(LDG|STG)\.E\.\S*128", line):
            found[arch, name][match[1] == "STG"] += 1
    return found


@pytest.mark.parametrize("kernel", ["expand_planes", "expand_rows", "pack_planes", "pack_rows"])
def test_scatter_kernels_move_16_bytes_at_a_time(accesses, kernel):
    """Planes (NCHW) and rows (channels last), float32 (``f``), float16 (``6__half``), bfloat16; loads and stores."""
    for arch in ARCHS:
        for dtype in ("If", "I6__half", "I13__nv_bfloat16"):
            counts = [
                both for (other, name), both in accesses.items() if other == arch and kernel in name and dtype in name
            ]
            assert len(counts) == 1, (arch, kernel, dtype)
            assert min(counts[0]) >= 1, (arch, kernel, dtype, counts)
