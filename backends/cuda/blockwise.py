"""Blockwise 8-bit quantization on NVIDIA GPUs."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.memory import NAMES, filled, new_like, writable

from .streams import place


class Blockwise:
    """The kernels of a native module."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def quantize_blockwise(
        self, A: Tensor, code: Tensor, blocksize: int, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes (uint8, the shape of A) and absmax (fp32, one per block)."""
        n = A.numel()
        if out is None:
            q = new_like(A, torch.uint8)
            absmax = A.new_empty(ceil_div(n, blocksize), dtype=torch.float32)
        else:
            q, absmax = (writable(tensor, A, code) for tensor in out)
        A, code = A.contiguous(), code.contiguous()
        self._native.quantize_blockwise(
            *place(A),
            *(A.data_ptr(), NAMES[A.dtype], code.data_ptr(), code.numel(), blocksize, n),
            *(q.data_ptr(), absmax.data_ptr()),
        )
        return (q, absmax) if out is None else (filled(out[0], q), filled(out[1], absmax))

    def dequantize_blockwise(
        self, A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """`code[A] * absmax` of each block: one fp32 product, rounded once to `dtype`."""
        result = new_like(A, dtype) if out is None else writable(out, A, absmax, code)
        A, absmax, code = A.contiguous(), absmax.contiguous(), code.contiguous()
        self._native.dequantize_blockwise(
            *place(A),
            *(A.data_ptr(), absmax.data_ptr(), code.data_ptr(), code.numel(), blocksize, A.numel()),
            *(NAMES[dtype], result.data_ptr()),
        )
        return result if out is None else filled(out, result)
