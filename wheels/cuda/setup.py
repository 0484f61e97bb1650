"""What pyproject.toml cannot say: bnb_core's version, and the native module, which bnb_core's CMakeLists.txt builds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "native"))
from cmake_build import CMakeBuild  # noqa: E402

(VERSION,) = re.findall(r'__version__ = "(.*)"', (ROOT / "bnb_core" / "_version.py").read_text())


class NativeBuild(CMakeBuild):
    options = ("-DBNB_CORE_CUDA=ON", "-DBNB_CORE_LEVELS=scalar")
    advice = "The kernels need nvcc and a C++17 compiler."


setup(
    version=VERSION,
    install_requires=[f"bnb-core=={VERSION}"],
    ext_modules=[Extension("bnb_core_cuda._native", sources=[])],
    cmdclass={"build_ext": NativeBuild},
)
