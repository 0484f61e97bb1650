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

    def quantize_blockwise(
        self, A: Tensor, code: Tensor, blocksize: int, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes (uint8, the shape of A) and absmax (fp32, one per block)."""
        out_q, out_absmax = (None, None) if out is None else out
        n = A.numel()
        q = Target(out_q, A, A.shape, torch.uint8, A, code)
        absmax = Target(out_absmax, A, (-(-n // blocksize),), torch.float32, A, code)
        A, code = A.contiguous(), code.contiguous()
        self._native.quantize_blockwise(
            A.data_ptr(),
            NAMES[A.dtype],
            code.data_ptr(),
            code.numel(),
            blocksize,
            n,
            q.memory.data_ptr(),
            absmax.memory.data_ptr(),
            torch.get_num_threads(),
        )
        return q.done(), absmax.done()

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
