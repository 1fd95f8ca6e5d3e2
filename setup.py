"""Hand the build of ``dqcore._C`` to CMake, or go on without it and write down why."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


class CMakeBuild(build_ext):
    """Build with CUDA where nvcc works, without it where it does not; ``dqcore info`` reads the record."""

    def build_extension(self, ext: Extension) -> None:
        """Build next to the package, and leave a record of what could not be built."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        record = {"extension": "not built", "cuda": "not built"}
        nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
        try:
            if nvcc is None:
                record["cuda"] = "nvcc was not found when dqcore was installed"
                self._cmake(target, cuda=False)
            else:
                try:
                    self._cmake(target, cuda=True)
                    record["cuda"] = f"built with {nvcc}"
                except (OSError, subprocess.CalledProcessError) as error:
                    record["cuda"] = f"{nvcc} could not build csrc/cuda: {_last_line(error)}"
                    self._cmake(target, cuda=False)
            record["extension"] = "built"
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            record["extension"] = f"the C++ build failed: {_last_line(error)}"
            raise CompileError(record["extension"]) from error
        finally:
            self._write_record(target, record)

    def _write_record(self, target: Path, record: dict[str, str]) -> None:
        folders = {target}
        if self.inplace or getattr(self, "editable_mode", False):
            folders.add(Path(__file__).resolve().parent / "dqcore")
        for folder in folders:
            (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    def _cmake(self, target: Path, *, cuda: bool) -> None:
        import pybind11

        build = Path(self.build_temp).resolve() / ("cuda" if cuda else "cpu")
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", str(Path(__file__).resolve().parent), "-B", str(build), "-G", "Ninja"),
            *("-DCMAKE_BUILD_TYPE=Release", f"-DDQCORE_CUDA={'ON' if cuda else 'OFF'}"),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
        ]
        for command in (configure, ["cmake", "--build", str(build)]):
            subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)


def _last_line(error: Exception) -> str:
    """The line of a failed command's output that names the failure."""
    lines = [line.strip() for line in (getattr(error, "stderr", None) or str(error)).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else repr(error))


setup(ext_modules=[Extension("dqcore._C", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
