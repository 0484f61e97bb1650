"""4-bit weights, NF4 and FP4, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .levels import at_each_level
from .memory import NAMES, Target


class FourBit:
    """The kernels of one level."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def dequantize_4bit(
        self,
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:
        """The value of each code times the absmax of its block: one fp32 product, rounded once to `dtype`."""
        target = Target(out, A, shape, dtype, A, absmax)
        A, absmax = A.contiguous(), absmax.contiguous()
        self._native.dequantize_4bit(
            A.data_ptr(),
            absmax.data_ptr(),
            blocksize,
            quant_type,
            math.prod(shape),
            NAMES[dtype],
            target.memory.data_ptr(),
            torch.get_num_threads(),
        )
        return target.done()


kernels = at_each_level(FourBit)
