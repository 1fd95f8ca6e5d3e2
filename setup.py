"""Build ``dqcore._C`` with CMake; where that fails, install without it and write down why.

The reason goes to ``dqcore/_build.json``, one line for C++ and one for CUDA, and ``dqcore info`` prints it.
"""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
#: Through ``src``, which holds a link to the package and nothing else, an editable install is a line in a .pth file,
#: and type checkers find the package; any other layout makes setuptools write an import hook, which they cannot follow.
#: In a checkout without symbolic links the kernels are mapped into the package instead.
PACKAGE_DIR = {"": "src"} if (ROOT / "src" / "dqcore").is_dir() else {"dqcore.kernels": "kernels"}
#: The first releases that pyproject.toml allows: a build without isolation does not read them there.
PYBIND11, SETUPTOOLS = "2.13", "77"
#: The first nvcc that knows every architecture that CMakeLists.txt names.
NVCC = "12.8"


class BuildError(Exception):
    """The build cannot go on; the message is one line that names what is missing or wrong."""


class CMakeBuild(build_ext):
    """Build with CUDA where nvcc works, without it where it does not, and record both."""

    def build_extension(self, ext: Extension) -> None:
        """Build next to the package, and leave a record of what could not be built."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        record = {"extension": "not built", "cuda": "not built, because the C++ build failed"}
        try:
            configure = [*configure_command(), f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}"]
            cuda = self._build_with_cuda(configure)
            if cuda is not None:
                self._build(configure, cuda=False)
            record = {"extension": "built", "cuda": cuda or f"built with {nvcc()}"}
        except BuildError as error:
            record["extension"] = f"the C++ build failed: {error}"
            raise CompileError(record["extension"]) from error
        finally:
            self._write_record(target, record)

    def _build_with_cuda(self, configure: list[str]) -> str | None:
        """Build C++ and CUDA; returns None, or the reason why CUDA cannot be built."""
        compiler = nvcc()
        if compiler is None:
            return "nvcc was not found when dqcore was installed"
        try:
            check_nvcc(compiler)
            self._build(configure, cuda=True)
        except BuildError as error:
            return f"{compiler} could not build csrc/cuda: {error}"
        return None

    def _build(self, configure: list[str], *, cuda: bool) -> None:
        folder = Path(self.build_temp).resolve() / ("cuda" if cuda else "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        run([*configure, "-B", str(folder), f"-DDQCORE_CUDA={'ON' if cuda else 'OFF'}"])
        run([configure[0], "--build", str(folder)])

    def _write_record(self, target: Path, record: dict[str, str]) -> None:
        folders = {target}
        if self.inplace or getattr(self, "editable_mode", False):
            folders.add(ROOT / "dqcore")
        for folder in folders:
            (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n")


def configure_command() -> list[str]:
    """CMake's command for the configure step, without the options of one build.

    Raises:
        BuildError: CMake, Ninja or pybind11 is missing or too old.
    """
    cmake = find_tool("CMake", "cmake", "CMAKE_BIN_DIR", wanted_cmake())
    ninja = find_tool("Ninja", "ninja", "BIN_DIR")
    try:
        pybind11 = importlib.import_module("pybind11")
    except ImportError as error:
        raise BuildError(f"it needs pybind11 {PYBIND11} or newer, found none; pip install pybind11") from error
    if version(found := pybind11.__version__) < version(PYBIND11):
        raise BuildError(f"it needs pybind11 {PYBIND11} or newer, found {found}; pip install -U pybind11")
    return [
        *(cmake, "-S", str(ROOT), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]


def wanted_cmake() -> str:
    """The oldest CMake that CMakeLists.txt accepts."""
    return re.findall(r"cmake_minimum_required\(VERSION ([\d.]+)\)", (ROOT / "CMakeLists.txt").read_text())[0]


def find_tool(title: str, name: str, folder: str, wanted: str = "") -> str:
    """The path of the first program that runs and is new enough: pip's, the interpreter's neighbour, the PATH's.

    Without build isolation pip's program need not be on the PATH, and the system's own may be years old.

    Args:
        title: The tool's name in messages.
        name: The program, and the package on PyPI that brings it.
        folder: The attribute of that package that names the folder of its programs.
        wanted: The oldest version that will do.

    Raises:
        BuildError: There is none; the message names each that was found and what is wrong with it.
    """
    found = []
    for path in _places(name, folder):
        try:
            number = program_version(path)
        except BuildError as error:
            found.append(f"{path}, which {error}")
            continue
        if version(number) >= version(wanted):
            return path
        found.append(f"{number} in {path}")
    needed = title if not wanted else f"{title} {wanted} or newer"
    raise BuildError(f"it needs {needed}, found {' and '.join(found) or 'none'}; pip install -U {name}")


def _places(name: str, folder: str) -> list[str]:
    """Where the program lies, each file once, best first."""
    places = []
    with contextlib.suppress(ImportError, AttributeError, TypeError):  # not installed, or another package of that name
        places.append(str(Path(getattr(importlib.import_module(name), folder)) / name))
    places += [str(Path(sys.executable).parent / name), shutil.which(name) or ""]
    return list(dict.fromkeys(path for path in places if path and shutil.which(path)))


def program_version(path: str) -> str:
    """What ``path --version`` prints.

    Raises:
        BuildError: It does not run, or prints no version.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"does not run ({error})") from error
    if done.returncode != 0:
        raise BuildError(f"does not run ({_ending(done.returncode, done.stderr.splitlines())})")
    found = re.search(r"release (\d+\.\d+)", done.stdout) or re.search(r"(\d+(?:\.\d+)+)", done.stdout)
    if found is None:
        raise BuildError("does not tell its version")
    return found[1]


def version(text: str) -> tuple[int, ...]:
    """A version's leading numbers, to compare: ``(3, 26)`` for ``"3.26"`` and ``(2, 13)`` for ``"2.13.0.dev1"``."""
    return tuple(int(part) for part in re.findall(r"^[\d.]*", text)[0].split(".") if part)


def nvcc() -> str | None:
    """The CUDA compiler: that of the environment variable CUDACXX, as for CMake, else the PATH's."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def check_nvcc(compiler: str) -> None:
    """Refuse an nvcc that does not know our architectures; whether other compilers will do, CMake finds out.

    Raises:
        BuildError: It is too old.
    """
    if not Path(compiler).name.startswith("nvcc"):
        return
    if version(number := program_version(compiler)) < version(NVCC):
        raise BuildError(f"it needs nvcc {NVCC} or newer, found {number}")


def run(command: list[str]) -> None:
    """Run a command of CMake's, and pass its output on to stderr as it comes.

    Raises:
        BuildError: It failed.
    """
    lines = []
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                sys.stderr.write(line)
                lines.append(line.rstrip())
    except OSError as error:
        raise BuildError(f"{command[0]} does not run ({error})") from error
    if process.returncode != 0:
        raise BuildError(reason(lines) or f"{command[0]} failed: {_ending(process.returncode, lines)}")


def reason(lines: list[str]) -> str | None:
    """Why CMake or a compiler failed, in one line; None where the output does not tell."""
    for place, line in enumerate(lines):
        if COMPILER_ERROR.search(line):
            return _joined([line, *_source_line(lines[place + 1 :])])
    for place, line in enumerate(lines):
        if line.startswith("CMake Error"):
            head = re.sub(r"(?<=CMake Error at )/\S*/", "", line)
            return _joined([head, *_paragraphs(lines[place + 1 :])])
    return next((line.strip() for line in lines if "error" in line.lower()), None)


#: An error in the style of gcc, clang, nvcc or the linker.
COMPILER_ERROR = re.compile(r"\b(?:fatal )?error\s*:|\bnvcc fatal\b|undefined reference to|\bcannot find -l")


def _source_line(after: list[str]) -> list[str]:
    """The line of source that gcc (``12 | text``) or nvcc (two spaces and the text) prints below an error."""
    text = next((line for line in after[:2] if line.strip()), "")
    found = re.match(r"(?:\s*\d+ \||\s{2,})\s*(.*[^\s^~].*)", text)
    return [f"in: {found[1]}"] if found else []


def _paragraphs(after: list[str]) -> list[str]:
    """The indented text below the head of an error of CMake's, up to what a failed test program printed."""
    text = []
    for line in after:
        if (line and not line.startswith(" ")) or "fails with the following output" in line:
            break
        text.append(line)
    return text


def _joined(lines: list[str], limit: int = 400) -> str:
    text = " ".join(" ".join(lines).split()).replace(f"{ROOT}/", "")
    return text if len(text) <= limit else text[:limit] + " ..."


def _ending(code: int, lines: list[str]) -> str:
    """How a program ended, and the last that it said."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"{signal.strsignal(-code)} (signal {-code})" if code < 0 else f"exit code {code}: {last}"


if __name__ == "__main__":  # as pip runs it, too; tests import the functions above
    if version(found := setuptools.__version__) < version(SETUPTOOLS):
        sys.exit(f"dqcore needs setuptools {SETUPTOOLS} or newer, found {found}; pip install -U setuptools")
    setup(
        package_dir=PACKAGE_DIR,
        ext_modules=[Extension("dqcore._C", sources=[], optional=True)],
        cmdclass={"build_ext": CMakeBuild},
    )
