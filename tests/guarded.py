"""Tensors that touch a page which cannot be read or written: a kernel that goes one byte too far dies at once."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Side = Literal["end", "start", "inside"]

PAGE = mmap.PAGESIZE
PROT_NONE = 0
GARBAGE = 0xA5  # what memory holds that nobody has written; of floats a number, so that reading it shows


class Fence:
    """Memory for tensors, each of which ends at a protected page, or with `side="start"` begins after one.

    With `side="inside"` a page is free behind it, for emulators that read what a mask excludes.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
        ]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._mapped: list[tuple[int, int]] = []

    def __enter__(self) -> Fence:
        return self

    def __exit__(self, *error: object) -> None:
        for address, size in self._mapped:
            self._libc.munmap(address, size)
        self._mapped.clear()

    def bytes(self, count: int) -> torch.Tensor:
        """`count` > 0 bytes of garbage between two protected pages, at one of them."""
        pages = -(-count // PAGE) + (self.side == "inside")
        size = (pages + 2) * PAGE
        private_anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = self._libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, private_anonymous, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"no memory for {size} bytes")
        self._mapped.append((address, size))
        for page in (address, address + size - PAGE):
            if self._libc.mprotect(page, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "a page could not be protected")
        start = address + size - PAGE - count if self.side == "end" else address + PAGE
        memory = torch.frombuffer((ctypes.c_uint8 * count).from_address(start), dtype=torch.uint8)
        return memory.fill_(GARBAGE)

    def empty(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor full of garbage, of which the last (or the first) element touches the protected page."""
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        return self.bytes(span * dtype.itemsize).view(dtype).as_strided(tuple(shape), tuple(stride))

    def copy(self, value: Any) -> Any:
        """Arguments of an operator with every tensor in such memory, of the same strides."""
        if isinstance(value, torch.Tensor):
            return self.empty(value.shape, value.stride(), value.dtype).copy_(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self.copy(item) for item in value)
        return value


class FencedAllocations(TorchDispatchMode):
    """Within it, tensors that torch makes without a value stand in such memory too: the outputs of kernels."""

    def __init__(self, fence: Fence) -> None:
        super().__init__()
        self.fence = fence

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        name: Callable[[], str] = func.name
        if not name().startswith(("aten::empty", "aten::new_empty")) or made.device.type != "cpu":
            return made
        return self.fence.empty(made.shape, made.stride(), made.dtype)
