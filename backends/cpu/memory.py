"""Tensors as native kernels take them: contiguous, by address."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def new_tensor(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous memory on the device of `like`. Of its shape it costs half as much: sizes are slow to hand over."""
    if shape == like.shape:
        return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    return like.new_empty(shape, dtype=dtype)


def address(tensor: Tensor | None) -> int:
    """Where the tensor's elements begin; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


class Target:
    """Where a kernel writes one output: `out` itself where that may be, else new memory that `done` copies there.

    It may not be `out` where that is strided, or shares memory with an input that is still to be read.
    """

    def __init__(
        self, out: Tensor | None, like: Tensor, shape: Sequence[int], dtype: torch.dtype, *inputs: Tensor
    ) -> None:
        self.out = out
        direct = out is not None and out.is_contiguous() and not _share_memory(out, inputs)
        self.memory = out if out is not None and direct else new_tensor(like, shape, dtype)

    def done(self) -> Tensor:
        """The output, written."""
        if self.out is None or self.out is self.memory:
            return self.memory
        return self.out.copy_(self.memory)


def _share_memory(out: Tensor, inputs: Sequence[Tensor]) -> bool:
    storage = out.untyped_storage().data_ptr()
    return any(tensor.untyped_storage().data_ptr() == storage for tensor in inputs)
