"""setup.py: which programs it takes, and the one line that it records where the build cannot go on."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

if importlib.util.find_spec("setuptools") is None:
    pytest.skip("needs setuptools", allow_module_level=True)

SPEC = importlib.util.spec_from_file_location("dqcore_setup", Path(__file__).parents[2] / "setup.py")
setup = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup)


def program(path, text):
    """A shell script in the place of a tool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three folders where a tool may lie: pip's package, beside the interpreter, on the PATH."""
    pip, neighbour, path = tmp_path / "pip", tmp_path / "venv" / "bin", tmp_path / "usr"
    package = types.SimpleNamespace(CMAKE_BIN_DIR=str(pip), BIN_DIR=str(pip))
    monkeypatch.setitem(sys.modules, "cmake", package)
    monkeypatch.setitem(sys.modules, "ninja", package)
    monkeypatch.setattr(sys, "executable", str(neighbour / "python"))
    monkeypatch.setenv("PATH", f"{path}:/nowhere")
    return pip, neighbour, path


def find_cmake():
    return setup.find_tool("CMake", "cmake", "CMAKE_BIN_DIR", "3.26")


def test_pips_cmake_is_taken_before_the_systems(places):
    pip, neighbour, path = places
    system = program(path / "cmake", "echo cmake version 4.0.0")
    assert find_cmake() == system
    beside = program(neighbour / "cmake", "echo cmake version 3.30.1")
    assert find_cmake() == beside
    from_package = program(pip / "cmake", "echo cmake version 3.26.0-rc1")
    assert find_cmake() == from_package


def test_a_program_that_will_not_do_is_passed_over(places):
    pip, neighbour, path = places
    program(pip / "cmake", "echo cmake version 3.25.1")
    program(neighbour / "cmake", "kill -SEGV $$")
    new = program(path / "cmake", "echo cmake version 3.26")
    assert find_cmake() == new


def test_too_old(places):
    _, _, path = places
    old = program(path / "cmake", "echo cmake version 3.25.1")
    with pytest.raises(setup.BuildError, match=r"CMake 3\.26 or newer, found 3\.25\.1 in " + old):
        find_cmake()


def test_none_at_all(places, monkeypatch):
    for name in ("cmake", "ninja"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(setup.BuildError, match=r"needs CMake 3\.26 or newer, found none; pip install -U cmake"):
        find_cmake()
    with pytest.raises(setup.BuildError, match="needs Ninja, found none; pip install -U ninja"):
        setup.find_tool("Ninja", "ninja", "BIN_DIR")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", r"does not run \(Segmentation fault \(signal 11\)\)"),
        ("echo No module named cmake >&2; exit 1", r"does not run \(exit code 1: No module named cmake\)"),
        ("echo hello", "does not tell its version"),
    ],
)
def test_a_cmake_that_crashes(places, script, message):
    broken = program(places[2] / "cmake", script)
    with pytest.raises(setup.BuildError, match=rf"found {broken}, which {message}"):
        find_cmake()


def test_the_wanted_cmake_is_that_of_the_build_file():
    assert f"cmake_minimum_required(VERSION {setup.wanted_cmake()})" in (setup.ROOT / "CMakeLists.txt").read_text()
    requires = (setup.ROOT / "pyproject.toml").read_text().partition("\n\n")[0]
    for name, oldest in (
        ("cmake", setup.wanted_cmake()),
        ("pybind11", setup.PYBIND11),
        ("setuptools", setup.SETUPTOOLS),
    ):
        assert f'"{name}>={oldest}"' in requires


def test_pybind11(places, monkeypatch):
    for name in ("cmake", "ninja"):
        program(places[0] / name, "echo 9.9")
    monkeypatch.setitem(sys.modules, "pybind11", None)
    with pytest.raises(setup.BuildError, match=r"needs pybind11 2\.13 or newer, found none"):
        setup.configure_command()
    monkeypatch.setitem(sys.modules, "pybind11", types.SimpleNamespace(__version__="2.9.2"))
    with pytest.raises(setup.BuildError, match=r"needs pybind11 2\.13 or newer, found 2\.9\.2"):
        setup.configure_command()
    found = types.SimpleNamespace(__version__="3.0.0.dev1", get_cmake_dir=lambda: "/there")
    monkeypatch.setitem(sys.modules, "pybind11", found)
    command = setup.configure_command()
    assert command[0] == str(places[0] / "cmake")
    assert f"-DCMAKE_MAKE_PROGRAM={places[0] / 'ninja'}" in command
    assert "-Dpybind11_DIR=/there" in command


def test_an_old_nvcc(tmp_path):
    release = "echo Cuda compilation tools, release {0}, V{0}.89"
    old = program(tmp_path / "old" / "nvcc", release.format("12.4"))
    with pytest.raises(setup.BuildError, match=r"needs nvcc 12\.8 or newer, found 12\.4"):
        setup.check_nvcc(old)
    setup.check_nvcc(program(tmp_path / "new" / "nvcc", release.format("12.8")))
    setup.check_nvcc("/bin/false")  # no nvcc: CMake finds out
    with pytest.raises(setup.BuildError, match="does not run"):
        setup.check_nvcc(str(tmp_path / "nvcc"))


GCC = """\
[1/9] Building CXX object CMakeFiles/_C.dir/csrc/module.cpp.o
FAILED: [code=1] CMakeFiles/_C.dir/csrc/module.cpp.o
/usr/bin/c++ -Werror=format -c {root}/csrc/module.cpp
In file included from {root}/csrc/module.cpp:3:
{root}/csrc/ops.h:12:5: error: 'Layot' does not name a type
   12 |     Layot layout;
      |     ^~~~~
{root}/csrc/ops.h:90:1: error: another one
ninja: build stopped: subcommand failed.
"""
NVCC = """\
FAILED: CMakeFiles/_C.dir/csrc/cuda/layout.cu.o
{root}/csrc/cuda/layout.cu(3): error: identifier "nothing" is undefined
      x[0] = nothing;
             ^

1 error detected in the compilation of "layout.cu".
"""
CMAKE = """\
-- The CXX compiler identification is GNU 12.2.0
CMake Error at /usr/share/cmake/Modules/FindPackageHandleStandardArgs.cmake:230 (message):
  Could NOT find Python (missing: Python_INCLUDE_DIRS Development.Module)
  (found version "3.11")
Call Stack (most recent call first):
  CMakeLists.txt:10 (find_package)
"""
CHECK = """\
CMake Error at /opt/cmake/Modules/CMakeTestCUDACompiler.cmake:59 (message):
  The CUDA compiler

    "/usr/bin/nvcc"

  is not able to compile a simple test program.

  It fails with the following output:

    Change Dir: build/x
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (GCC, "csrc/ops.h:12:5: error: 'Layot' does not name a type in: Layot layout;"),
        (NVCC, 'csrc/cuda/layout.cu(3): error: identifier "nothing" is undefined in: x[0] = nothing;'),
        (
            CMAKE,
            "CMake Error at FindPackageHandleStandardArgs.cmake:230 (message): Could NOT find Python (missing: "
            'Python_INCLUDE_DIRS Development.Module) (found version "3.11")',
        ),
        (
            CHECK,
            'CMake Error at CMakeTestCUDACompiler.cmake:59 (message): The CUDA compiler "/usr/bin/nvcc" is not able to '
            "compile a simple test program.",
        ),
        (
            CHECK + "    nvcc fatal   : Unsupported gpu architecture 'compute_120'\n",
            "nvcc fatal : Unsupported gpu architecture 'compute_120'",
        ),
        (
            "/usr/bin/ld: cannot find -lcudart_static: No such file\ncollect2: error: ld returned 1 exit status\n",
            "/usr/bin/ld: cannot find -lcudart_static: No such file",
        ),
        ("ninja: error: loading 'build.ninja'\n", "ninja: error: loading 'build.ninja'"),
        ("all went well\n", None),
    ],
    ids=["gcc", "nvcc", "cmake", "check", "architecture", "linker", "ninja", "nothing"],
)
def test_the_reason_is_one_line(output, expected):
    assert setup.reason(output.format(root=setup.ROOT).splitlines()) == expected


def test_a_command_that_fails(tmp_path, capfd):
    with pytest.raises(setup.BuildError, match=r"^a\.cpp:1:2: error: bad$"):
        setup.run([program(tmp_path / "cc", "echo fine; echo a.cpp:1:2: error: bad >&2; exit 1")])
    assert capfd.readouterr().err == "fine\na.cpp:1:2: error: bad\n"  # nothing is hidden from `pip install -v`
    with pytest.raises(setup.BuildError, match=r"cc failed: Segmentation fault \(signal 11\)"):
        setup.run([program(tmp_path / "cc", "kill -SEGV $$")])
    with pytest.raises(setup.BuildError, match="cc failed: exit code 3: no output"):
        setup.run([program(tmp_path / "cc", "exit 3")])
    with pytest.raises(setup.BuildError, match="does not run"):
        setup.run([str(tmp_path / "nothing")])
    setup.run([program(tmp_path / "cc", "echo error: none")])
