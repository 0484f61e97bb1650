"""Native modules built by CMake, for the setup.py of each distribution."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

__all__ = ["CMakeBuild", "is_set"]

SOURCES = Path(__file__).resolve().parents[1]


def is_set(variable: str) -> bool:
    """Whether a variable of the environment is there, and not 0."""
    return os.environ.get(variable, "0") not in ("", "0")


class CMakeBuild(build_ext):
    """Builds the modules `_native` of all extensions in one CMake run.

    options: for CMake. advice: what an error ends with. The module of backends/cuda is that of the package
    `bnb_core.backends.cuda`, or `bnb_core_cuda`.
    """

    options: tuple[str, ...] = ()
    advice = ""

    def build_extensions(self) -> None:
        import pybind11  # a requirement of the build alone

        tree = Path(self.build_temp).resolve()
        output = tree / "modules"
        # An isolated build leaves paths in the cache that are gone by the next one.
        (tree / "CMakeCache.txt").unlink(missing_ok=True)
        cmake = self._tool("cmake")
        self._run(
            cmake,
            *("-S", str(SOURCES), "-B", str(tree), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={self._tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBNB_CORE_OUTPUT_DIR={output}",
            *self.options,
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        )
        folders = {extension.name: self._folder(extension.name) for extension in self.extensions}
        self._run(cmake, "--build", str(tree), "--target", *(f"{folder}_native" for folder in folders.values()))
        for name, folder in folders.items():
            built = output / folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
            path = Path(self.get_ext_fullpath(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, path)

    def _folder(self, extension: str) -> str:
        return extension.split(".")[-2].removeprefix("bnb_core_")

    def _tool(self, name: str) -> str:
        # PATH first: an isolated build puts its own tools there, beside another interpreter than sys.executable's.
        found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
        if found is None:
            raise ExecError(f"{name} was not found. {self.advice}")
        return found

    def _run(self, *command: str) -> None:
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ExecError(f"building the native kernels failed, see above: {error}. {self.advice}") from error
