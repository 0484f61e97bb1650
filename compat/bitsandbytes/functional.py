"""The functions beneath the layers, which are bnb_core's, and tools for pointers and paged memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import bnb_core.functional
from bnb_core.functional import *  # noqa: F403  its names, and more below
from bnb_core.ops_registry import paged_memory

from .cextension import lib

__all__ = [
    *bnb_core.functional.__all__,
    "CUBLAS_Context",
    "FIRST_CUDA_DEVICE",
    "GlobalPageManager",
    "elementwise_func",
    "fill",
    "get_paged",
    "get_ptr",
    "has_avx512bf16",
    "is_on_gpu",
    "lib",
    "name2qmap",
    "prefetch_tensor",
]

# Codebooks by name, which scripts fill and read.
name2qmap: dict[str, Tensor] = {}

FIRST_CUDA_DEVICE = torch.device("cuda", index=0)


def get_ptr(A: Tensor | None) -> ctypes.c_void_p | None:
    """The address of a tensor's data, for functions of `lib`."""
    return None if A is None else ctypes.c_void_p(A.data_ptr())


def is_on_gpu(tensors: Iterable[Tensor | None]) -> bool:
    """True where all tensors that are given are on one accelerator; paged ones count as there.

    Raises RuntimeError where some are elsewhere.
    """
    places = {t.device for t in tensors if t is not None and not getattr(t, "is_paged", False)}
    if len(places) > 1 or any(place.type == "cpu" for place in places):
        raise RuntimeError(f"tensors are on {', '.join(map(str, places))}, expected all on one accelerator")
    return True


def has_avx512bf16() -> bool:
    """True where the CPU has AVX512-BF16."""
    return bool(torch.cpu._is_avx512_bf16_supported())


class CUBLAS_Context:
    """Handles of the vendor's library, which torch holds: asked for by no function here."""

    _instance: CUBLAS_Context | None = None

    def __init__(self) -> None:
        raise RuntimeError("there is one CUBLAS_Context: call CUBLAS_Context.get_instance()")

    @classmethod
    def get_instance(cls) -> CUBLAS_Context:
        """The one of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
        return cls._instance

    def get_context(self, device: torch.device) -> ctypes.c_void_p:
        """torch's handle for a CUDA device."""
        with torch.cuda.device(device):
            return ctypes.c_void_p(torch.cuda.current_blas_handle())


class GlobalPageManager:
    """The paged tensors of this process."""

    _instance: GlobalPageManager | None = None

    def __init__(self) -> None:
        raise RuntimeError("there is one GlobalPageManager: call GlobalPageManager.get_instance()")

    @classmethod
    def get_instance(cls) -> GlobalPageManager:
        """The one of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def initialize(self) -> None:
        """Forgets all."""
        self.paged_tensors: list[Tensor] = []

    def prefetch_all(self, to_cpu: bool = False) -> None:
        """Prefetches each, the first one last."""
        for tensor in reversed(self.paged_tensors):
            prefetch_tensor(tensor, to_cpu)


def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device = FIRST_CUDA_DEVICE) -> Tensor:
    """A zeroed tensor whose pages can leave the device.

    Raises RuntimeError where no backend has paged memory for the device.
    """
    device = torch.device(device)
    memory = paged_memory(device)
    if memory is None:
        raise RuntimeError(f"get_paged: no backend has paged memory for {device.type}")
    tensor: Any = memory.zeros(shape, dtype, device)
    tensor.is_paged = True
    tensor.page_deviceid = device.index or 0
    GlobalPageManager.get_instance().paged_tensors.append(tensor)
    return tensor


def prefetch_tensor(A: Tensor, to_cpu: bool = False) -> None:
    """Brings the pages of a tensor from `get_paged` to its device. With to_cpu they stay where they are.

    Raises ValueError for another tensor.
    """
    if not getattr(A, "is_paged", False):
        raise ValueError("prefetch_tensor: A is not paged, expected a tensor from get_paged")
    memory = paged_memory(A.device)
    if memory is not None and not to_cpu:
        memory.prefetch(A)


def elementwise_func(func_name: str, A: Tensor, B: Tensor | None, value: Any, prefetch: bool = True) -> None:
    """`fill` (with value), `arange` or `_mul` (by B), in place. Raises ValueError for another name."""
    for tensor in (A, B):
        if tensor is not None and prefetch and getattr(tensor, "is_paged", False):
            prefetch_tensor(tensor)
    if func_name == "fill":
        A.fill_(value)
    elif func_name == "arange":
        A.copy_(torch.arange(A.numel(), device=A.device).view_as(A))
    elif func_name == "_mul" and B is not None:
        A.mul_(B)
    else:
        raise ValueError(f"func_name is {func_name!r}, expected 'fill', 'arange', or '_mul' with B")


def fill(A: Tensor, value: float, device: torch.device | None = None, prefetch: bool = True) -> None:
    """Fills a tensor, in place."""
    elementwise_func("fill", A, None, value, prefetch)


def _mul(A: Tensor, B: Tensor, device: torch.device | None = None) -> None:
    """Multiplies A by B, in place."""
    elementwise_func("_mul", A, B, None)
