"""The kernels of acme: those of the CPU, on its memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .device import on_device, on_host

_ops = torch.ops.bnb_core


def quantize_4bit(A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> tuple[Tensor, Tensor]:
    packed, absmax = _ops.quantize_4bit.default(on_host(A), blocksize, quant_type, quant_storage)
    return on_device(packed, A.device.index), on_device(absmax, A.device.index)


def dequantize_4bit(
    A: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    args = (on_host(A), on_host(absmax), blocksize, quant_type, shape, dtype)
    if out is not None:
        _ops.dequantize_4bit.out(*args, on_host(out))
        return out
    return on_device(_ops.dequantize_4bit.default(*args), A.device.index)
