"""Blockwise 8-bit quantization on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def dequantize_blockwise(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """`code[A] * absmax` of each block: one fp32 product, rounded once to `dtype`."""
    direct = out is not None and out.is_contiguous() and not _share_memory(out, A, absmax, code)
    result = out if out is not None and direct else A.new_empty(A.shape, dtype=dtype)
    A, absmax, code = A.contiguous(), absmax.contiguous(), code.contiguous()
    _native.dequantize_blockwise(
        A.data_ptr(),
        absmax.data_ptr(),
        code.data_ptr(),
        code.numel(),
        blocksize,
        A.numel(),
        _NAMES[dtype],
        result.data_ptr(),
    )
    if out is not None and not direct:
        out.copy_(result)
    return result


def _share_memory(out: Tensor, *inputs: Tensor) -> bool:
    storage = out.untyped_storage().data_ptr()
    return any(tensor.untyped_storage().data_ptr() == storage for tensor in inputs)
