"""8-bit codes with one scale per block (arXiv:2110.02861)."""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.quant_state import QuantState

from .tables import create_dynamic_map

__all__ = ["dequantize_blockwise", "quantize_blockwise", "with_nested_scales"]

ops = torch.ops.bnb_core

# torch splits a sum over threads from 32768 elements on; below that this is the sum of torch to the bit.
_SUM_CHUNK = 16384


def quantize_blockwise(
    A: Tensor,
    code: Tensor | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> tuple[Tensor, QuantState]:
    """Quantizes to uint8 codes, each block of `blocksize` elements by its own largest magnitude.

    A: fp32, fp16 or bf16, any shape. code: fp32 `[1…256]`; None: the signed dynamic map. nested: quantizes the scales
    too. Returns codes of A's shape, and the state for `dequantize_blockwise`.

    Raises ValueError for `absmax` with `nested`, whose scales are not fp32.
    """
    if nested and absmax is not None:
        raise ValueError("absmax receives fp32 scales, which nested=True does not keep")
    code = create_dynamic_map().to(A.device) if code is None else code.to(A.device)
    if out is None and absmax is None:
        out, absmax = ops.quantize_blockwise.default(A.detach(), code, blocksize)
    else:
        out = torch.empty(A.shape, dtype=torch.uint8, device=A.device) if out is None else out
        absmax = A.new_empty(ceil_div(A.numel(), blocksize), dtype=torch.float32) if absmax is None else absmax
        ops.quantize_blockwise.out(A.detach(), code, blocksize, out, absmax)
    state = QuantState(absmax, code=code, blocksize=blocksize, dtype=A.dtype)
    return out, with_nested_scales(state, blocksize) if nested else state


def dequantize_blockwise(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> Tensor:
    """The values of blockwise uint8 codes.

    With a `quant_state` it says all the rest; else `absmax`, `code` (None: the signed dynamic map) and `blocksize` do.
    The result has the dtype of `out`, of the state, or fp32.

    Raises ValueError for both or neither of `quant_state` and `absmax`, a state of 4-bit codes, and `nested` without a
    nested state.
    """
    if (quant_state is None) == (absmax is None):
        raise ValueError("give either quant_state or absmax")
    if quant_state is None:
        assert absmax is not None
        code = create_dynamic_map().to(A.device) if code is None else code.to(A.device)
        quant_state = QuantState(absmax, code=code, blocksize=blocksize, dtype=torch.float32)
    if quant_state.quant_type is not None:
        raise ValueError(f"quant_state is that of {quant_state.quant_type} codes: use dequantize_4bit")
    if nested and not quant_state.nested:
        raise ValueError("nested=True needs a quant_state with nested statistics")
    args = (A, quant_state.scales(), quant_state.code, quant_state.blocksize)
    if out is None:
        return ops.dequantize_blockwise.default(*args, quant_state.dtype)
    ops.dequantize_blockwise.out(*args, out.dtype, out)
    return out


def with_nested_scales(state: QuantState, blocksize: int) -> QuantState:
    """The state with its scales quantized: their differences from the mean, in blocks of the dynamic map.

    The mean is that of the finite scales, so that one that is not poisons no group but its own.
    """
    finite = torch.isfinite(state.absmax)
    offset = _ordered_sum(torch.where(finite, state.absmax, 0.0)) / finite.sum().clamp(min=1)
    absmax, state2 = quantize_blockwise(state.absmax - offset, blocksize=blocksize)
    return QuantState(
        absmax, state.shape, state.code, state.blocksize, state.quant_type, state.dtype, offset=offset, state2=state2
    )


def _ordered_sum(values: Tensor) -> Tensor:
    """The sum of a vector, added up in the same order on any number of threads."""
    while values.numel() > _SUM_CHUNK:
        values = torch.nn.functional.pad(values, (0, -values.numel() % _SUM_CHUNK)).view(-1, _SUM_CHUNK).sum(dim=1)
    return values.sum()
