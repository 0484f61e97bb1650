"""What pyproject.toml cannot say: packages mapped from three roots, and native modules built by CMake."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build

sys.path.insert(0, str(Path(__file__).parent / "native"))
from cmake_build import CMakeBuild, is_set

ROOTS = {"bnb_core": "bnb_core", "bnb_core.ops_registry": "ops_registry", "bnb_core.backends": "backends"}
NO_NATIVE = "BNB_CORE_NO_NATIVE"
CUDA = "BNB_CORE_CUDA"


def packages() -> list[str]:
    """The packages of every root under their installed names; a link that stands for another root is not followed."""
    found = []
    for name, folder in ROOTS.items():
        links = [other.removeprefix(f"{name}.") for other in ROOTS if other.startswith(f"{name}.")]
        inside = find_packages(folder, exclude=[pattern for link in links for pattern in (link, f"{link}.*")])
        found += [name, *(f"{name}.{package}" for package in inside)]
    return found


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


class NativeBuild(CMakeBuild):
    options = (f"-DBNB_CORE_CUDA={'ON' if is_set(CUDA) else 'OFF'}",)
    advice = f"The native kernels need a C++17 compiler. Set {NO_NATIVE}=1 to install bnb_core without them."


setup(
    packages=packages(),
    package_dir=ROOTS,
    ext_modules=native_modules(),
    cmdclass={"build": FreshBuild, "build_ext": NativeBuild},
)
