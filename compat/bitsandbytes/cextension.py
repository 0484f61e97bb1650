"""The native library of this machine's device, as far as functions by C names go."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import torch

from .consts import DYNAMIC_LIBRARY_SUFFIX, PACKAGE_DIR
from .cuda_specs import CUDASpecs, get_cuda_specs, get_cuda_version_tuple, get_rocm_gpu_arch

__all__ = [
    "BNBNativeLibrary",
    "BNB_BACKEND",
    "CUDASpecs",
    "CudaBNBNativeLibrary",
    "DYNAMIC_LIBRARY_SUFFIX",
    "ErrorHandlerMockBNBNativeLibrary",
    "HIP_ENVIRONMENT",
    "PACKAGE_DIR",
    "ROCM_GPU_ARCH",
    "XpuBNBNativeLibrary",
    "get_cuda_specs",
    "get_cuda_version_tuple",
    "get_native_library",
    "get_rocm_gpu_arch",
    "lib",
]

HIP_ENVIRONMENT = bool(torch.version.hip)
ROCM_GPU_ARCH = get_rocm_gpu_arch()


def _backend() -> str:
    if HIP_ENVIRONMENT:
        return "ROCm"
    if torch.cuda.is_available():
        return "CUDA"
    return "XPU" if torch.xpu.is_available() else "CPU"


BNB_BACKEND = _backend()


class BNBNativeLibrary:
    """Functions of a native library by their C names: `lib.name` or `lib["name"]`.

    Raises AttributeError for a name that the library does not have.
    """

    compiled_with_cuda = False

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._lib, name)
        except AttributeError:
            raise AttributeError(f"the native library {self._lib._name} has no function {name}") from None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class CudaBNBNativeLibrary(BNBNativeLibrary):
    """That of CUDA or ROCm."""

    compiled_with_cuda = True


class XpuBNBNativeLibrary(BNBNativeLibrary):
    """That of Intel GPUs."""


class ErrorHandlerMockBNBNativeLibrary(BNBNativeLibrary):
    """Stands where there is no library: each of its functions raises RuntimeError."""

    def __init__(self, error_msg: str) -> None:
        self.error_msg = error_msg

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any) -> None:
            raise RuntimeError(f"{name}: {self.error_msg}")

        return refuse


# The modules of backends that are libraries with C names, by the device they are for; the first that is there counts.
_NATIVE = {
    "CPU": (("bnb_core.backends.cpu._native",), BNBNativeLibrary),
    "CUDA": (("bnb_core.backends.cuda._native", "bnb_core_cuda._native"), CudaBNBNativeLibrary),
}


def get_native_library() -> BNBNativeLibrary:
    """The library of the accelerator, or of the CPU; a stand-in that refuses where there is none."""
    if BNB_BACKEND not in _NATIVE:
        return ErrorHandlerMockBNBNativeLibrary(f"bnb_core has no functions by C names for {BNB_BACKEND}")
    modules, kind = _NATIVE[BNB_BACKEND]
    errors = []
    for module in modules:
        try:
            return kind(ctypes.CDLL(importlib.import_module(module).__file__))
        except ImportError as error:
            errors.append(str(error))
    return ErrorHandlerMockBNBNativeLibrary(f"bnb_core's native library is not there: {'; '.join(errors)}")


lib = get_native_library()
