"""Tensors as native kernels take them: contiguous, by address.

A small call costs what its wrapper does, so that these count: an `empty` of sizes that stand in a tuple takes 0.8 µs
more than one of the same sizes as arguments, or of the shape of another tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def new_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous memory of the tensor's shape on its device."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def new_tensor(like: Tensor, *sizes: int, dtype: torch.dtype) -> Tensor:
    """Contiguous memory on the device of `like`."""
    return like.new_empty(*sizes or ((),), dtype=dtype)  # none at all would not be an argument


def address(tensor: Tensor | None) -> int:
    """Where the tensor's elements begin; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or a contiguous copy; None for none."""
    return None if tensor is None else tensor.contiguous()


def aligned(tensor: Tensor) -> Tensor:
    """The contiguous tensor, or a copy, at an address for accesses of 16 bytes."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def writable(out: Tensor, *inputs: Tensor | None) -> Tensor:
    """Memory for the result that is to be in `out`: `out` itself, or a tensor like it, which `filled` copies there.

    It may not be `out` where that is strided, or shares memory with an input that is still to be read.
    """
    storage = out.untyped_storage().data_ptr()
    shared = any(tensor is not None and tensor.untyped_storage().data_ptr() == storage for tensor in inputs)
    return out if out.is_contiguous() and not shared else new_like(out, out.dtype)


def filled(out: Tensor, result: Tensor) -> Tensor:
    """`out` with the result in it, which was written to the memory that `writable` gave."""
    return out if result is out else out.copy_(result)
