"""What pyproject.toml cannot say: packages mapped from three roots, and native modules built by CMake."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOTS = {"bnb_core": "bnb_core", "bnb_core.ops_registry": "ops_registry", "bnb_core.backends": "backends"}
NO_NATIVE = "BNB_CORE_NO_NATIVE"
CUDA = "BNB_CORE_CUDA"
ADVICE = f"The native kernels need a C++17 compiler. Set {NO_NATIVE}=1 to install bnb_core without them."


def packages() -> list[str]:
    """The packages of every root under their installed names; a link that stands for another root is not followed."""
    found = []
    for name, folder in ROOTS.items():
        links = [other.removeprefix(f"{name}.") for other in ROOTS if other.startswith(f"{name}.")]
        inside = find_packages(folder, exclude=[pattern for link in links for pattern in (link, f"{link}.*")])
        found += [name, *(f"{name}.{package}" for package in inside)]
    return found


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def native_modules() -> list[Extension]:
    """One module `_native` for each backend that has a CMakeLists.txt; CMake knows its sources.

    That for CUDA only where it is asked for: nvcc takes minutes, which nobody without such a GPU should wait for.
    """
    if is_set(NO_NATIVE):
        return []
    folders = sorted(path.parent.name for path in Path("backends").glob("*/CMakeLists.txt"))
    if not is_set(CUDA):
        folders.remove("cuda")
    return [Extension(f"bnb_core.backends.{folder}._native", sources=[]) for folder in folders]


class FreshBuild(build):
    """A build that starts empty: a file deleted from the sources must not live on in the next wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds all native modules in one CMake run."""

    def build_extensions(self) -> None:
        import pybind11  # a requirement of the build alone

        # The file of backends/cpu is <output>/cpu/_native.so, whatever the folder and suffix of this build.
        output = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parents[1]
        tree = Path(self.build_temp).resolve()
        # An isolated build leaves paths in the cache that are gone by the next one.
        (tree / "CMakeCache.txt").unlink(missing_ok=True)
        cmake = _tool("cmake")
        _run(
            cmake,
            *("-S", ".", "-B", str(tree), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBNB_CORE_OUTPUT_DIR={output}",
            f"-DBNB_CORE_CUDA={'ON' if is_set(CUDA) else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        )
        _run(cmake, "--build", str(tree))


def _tool(name: str) -> str:
    # PATH first: an isolated build puts its own tools there, beside another interpreter than sys.executable's.
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise ExecError(f"{name} was not found. {ADVICE}")
    return found


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ExecError(f"building the native kernels failed, see above: {error}. {ADVICE}") from error


setup(
    packages=packages(),
    package_dir=ROOTS,
    ext_modules=native_modules(),
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
)
