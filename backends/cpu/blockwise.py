"""Blockwise 8-bit quantization on the CPU."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .levels import at_each_level
from .memory import NAMES, Target


class Blockwise:
    """The kernels of one level."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def dequantize_blockwise(
        self, A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """`code[A] * absmax` of each block: one fp32 product, rounded once to `dtype`."""
        target = Target(out, A, A.shape, dtype, A, absmax, code)
        A, absmax, code = A.contiguous(), absmax.contiguous(), code.contiguous()
        self._native.dequantize_blockwise(
            A.data_ptr(),
            absmax.data_ptr(),
            code.data_ptr(),
            code.numel(),
            blocksize,
            A.numel(),
            NAMES[dtype],
            target.memory.data_ptr(),
            torch.get_num_threads(),
        )
        return target.done()


kernels = at_each_level(Blockwise)
