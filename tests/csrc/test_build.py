"""csrc as CMake builds it, every warning an error, for every GPU it ships for; and what nvcc made of it."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHS = (80, 86, 89, 90, 100, 120)
NVCC = shutil.which("nvcc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs c++"),
]


def build(folder: Path, *options: str) -> str:
    """Build with the tools that setup.py finds, warnings as errors; what the compilers said."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("dqcore_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    try:
        configure = [*setup.configure_command(), "-B", str(folder), "-DDQCORE_WERROR=ON", *options]
    except setup.BuildError as error:
        pytest.skip(str(error))
    said = ""
    for command in (configure, [configure[0], "--build", str(folder), "--verbose"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        said += done.stdout
    return said


def test_cpu_without_a_warning(tmp_path):
    said = build(tmp_path)
    assert all(flag in said for flag in ("-Wall", "-Wextra", "-Werror"))
    assert list(tmp_path.glob("_C*"))


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """The folder of the objects, and what nvcc said."""
    if NVCC is None:
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp("cuda")
    said = build(folder, "-DDQCORE_CUDA=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v")  # the shipped targets are CMake's default
    assert all(flag in said for flag in ("-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-Xcompiler=-Werror"))
    return folder / "CMakeFiles/_C.dir/csrc/cuda", said


def test_no_cuda_kernel_spills(cuda):
    _, said = cuda
    compiled = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", said)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    names = [name for name, arch in compiled if arch == "90"]
    assert len(names) >= 5 * 3 - 1  # five files; features in three types
    for arch in ARCHS:
        assert sum(other == str(arch) for _, other in compiled) == len(names), arch
    assert len(frames) == len(compiled)
    assert {int(number) for frame in frames for number in frame} == {0}


@pytest.fixture(scope="module")
def accesses(cuda):
    """How many loads and stores of 16 bytes each kernel has for each target: ``{(arch, name): (loads, stores)}``."""
    folder, _ = cuda
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton")
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found = {}
    for stem in ("expand_features", "pack_features"):
        text = subprocess.run(
            [tool, "-sass", folder / f"{stem}.cu.o"], capture_output=True, text=True, check=True
        ).stdout
        arch = name = None
        for line in text.splitlines():
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
