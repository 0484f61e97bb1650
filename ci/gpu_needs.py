"""What ci/gpu needs: `gpu_needs.py DEVICE STEPS` prints the architecture of the GPU as CMake names it, 90-real, or
says what is missing, a sentence for each thing, and ends with status 2. `gpu_needs.py --versions` says what is there.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

REHEARSED = "90-real"  # built for where there is no GPU
# Imported by name → what needs it.
MODULES = {"pytest": "test", "xdist": "test", "hypothesis": "test", "safetensors": "test", "rich": "bench conformance"}


def missing(device: str, steps: list[str]) -> Iterator[str]:
    """What stands in the way of some steps on a device, in sentences."""
    if importlib.util.find_spec("torch") is None:
        yield f"torch is not installed for {sys.executable}; BNB_CORE_PYTHON names another Python"
    elif device == "cuda":
        import torch

        if torch.version.cuda is None:
            yield f"torch {torch.__version__} is built without CUDA"
        elif not torch.cuda.is_available():
            yield f"torch {torch.__version__} finds no NVIDIA GPU, or no driver for CUDA {torch.version.cuda}"
    if "build" in steps:
        if shutil.which(os.environ.get("CUDACXX", "nvcc")) is None:
            yield "nvcc is not on the path, nor named by CUDACXX; the other steps then try what Triton compiles"
        yield from (f"{tool} is not on the path" for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None)
        if importlib.util.find_spec("pybind11") is None:
            yield f"pybind11 is not installed for {sys.executable}"
    for module, needed in MODULES.items():
        if importlib.util.find_spec(module) is None and set(needed.split()) & set(steps):
            yield f"{module} is not installed for {sys.executable}"
    if "sanitize" in steps and shutil.which("compute-sanitizer") is None:
        yield "compute-sanitizer is not on the path"


def architecture(device: str) -> str:
    """That of the first GPU."""
    if device != "cuda":
        return REHEARSED
    import torch

    return "{}{}-real".format(*torch.cuda.get_device_capability())


def versions() -> str:
    """The GPU, its driver, and the versions of what the results depend on, in a line."""
    import torch

    parts = [torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()]
    ask = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if torch.cuda.is_available() and shutil.which(ask[0]):
        driver = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
        parts.append(f"driver {driver[0] if driver else 'unknown'}")
    parts += [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("triton", "numpy", "bitsandbytes"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)


def main(arguments: list[str]) -> int:
    if arguments == ["--versions"]:
        print(versions())
        return 0
    device, steps = arguments
    sentences = list(missing(device, steps.split()))
    for sentence in sentences:
        print(f"ci/gpu: {sentence}", file=sys.stderr)
    if sentences:
        return 2
    print(architecture(device))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
