"""Managed memory of NVIDIA GPUs: pages of it leave the GPU where other memory needs the room."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.paging import PagedMemory

from .streams import place


class _Managed:
    """Managed memory as torch takes it, freed with the last tensor over it."""

    def __init__(self, native: ModuleType, memory: int, size: int) -> None:
        self._native, self._memory = native, memory
        self.__cuda_array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (memory, False)}

    def __del__(self) -> None:
        self._native.managed_free(self._memory)


class ManagedMemory:
    """The paged memory of a native module."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A zeroed tensor in managed memory; in ordinary memory where the device has no such."""
        size = torch.Size(shape).numel() * dtype.itemsize
        nothing = torch.empty(0, dtype=torch.uint8, device=device)
        memory = self._native.managed_allocate(*place(nothing), size) if size else 0
        if not memory:
            return torch.zeros(shape, dtype=dtype, device=device)
        managed = torch.as_tensor(_Managed(self._native, memory, size), device=nothing.device)
        return managed.view(dtype).view(shape)

    def prefetch(self, tensor: Tensor) -> None:
        """Brings the pages of a tensor to its device, in the order of the current stream."""
        if tensor.numel():
            self._native.managed_prefetch(*place(tensor), tensor.data_ptr(), tensor.numel() * tensor.element_size())


@cache
def paged_memory() -> PagedMemory:
    """What discovery registers for the devices of this backend."""
    from . import _native

    return ManagedMemory(_native)
