"""4-bit weights, NF4 and FP4 (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_core.ops_registry.formats import NESTED_BLOCKSIZE
from bnb_core.quant_state import QuantState

from .blockwise import with_nested_scales
from .buffers import copied_to
from .tables import get_4bit_type

__all__ = [
    "DEFAULT_4BIT_BLOCKSIZE",
    "dequantize_4bit",
    "dequantize_fp4",
    "dequantize_nf4",
    "gemv_4bit",
    "quantize_4bit",
    "quantize_fp4",
    "quantize_nf4",
]

DEFAULT_4BIT_BLOCKSIZE = 64

ops = torch.ops.bnb_core


def quantize_4bit(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Quantizes to 4-bit codes, two to a byte (QLoRA, arXiv:2305.14314).

    A: fp32, fp16 or bf16, any shape. blocksize: 16, 32, … 4096, by default 64. quant_type: `nf4` or `fp4`.
    compress_statistics: quantizes the scales too, in groups of 256. quant_storage: the dtype the bytes are viewed as.
    Returns the packed codes `[…, 1]` and the state for `dequantize_4bit`.

    Raises ValueError for `absmax` with `compress_statistics`, or a buffer of the wrong shape, dtype or device.
    """
    if compress_statistics and absmax is not None:
        raise ValueError("absmax receives fp32 scales, which compress_statistics=True does not keep")
    blocksize = DEFAULT_4BIT_BLOCKSIZE if blocksize is None else blocksize
    packed, scales = ops.quantize_4bit.default(A.detach(), blocksize, quant_type, quant_storage)
    packed, scales = copied_to(out, packed), copied_to(absmax, scales, "absmax")
    state = QuantState(scales, A.shape, get_4bit_type(quant_type, A.device), blocksize, quant_type, A.dtype)
    return packed, with_nested_scales(state, NESTED_BLOCKSIZE) if compress_statistics else state


def quantize_nf4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to NF4."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "nf4", quant_storage)


def quantize_fp4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to FP4."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "fp4", quant_storage)


def dequantize_4bit(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    quant_type: str = "fp4",
) -> Tensor:
    """The values of packed 4-bit codes.

    With a `quant_state` it says all the rest, quant_type included. Else `absmax`, `blocksize` and `quant_type` do, and
    `out` shape and dtype. Packed codes that were transposed to `[1, n]` give the transpose.

    Raises ValueError for both or neither of `quant_state` and `absmax`, `absmax` without `out`, a state of other than
    4-bit codes, or a `blocksize` that is not that of the state.
    """
    if (quant_state is None) == (absmax is None):
        raise ValueError("give either quant_state or absmax")
    if quant_state is None:
        assert absmax is not None
        if out is None:
            raise ValueError("without a quant_state, out must say shape and dtype")
        blocksize = DEFAULT_4BIT_BLOCKSIZE if blocksize is None else blocksize
        quant_state = QuantState(absmax, out.shape, None, blocksize, quant_type, out.dtype)
    shape, own_blocksize, quant_type = quant_state.four_bit_format()
    if blocksize is not None and blocksize != own_blocksize:
        raise ValueError(f"blocksize is {blocksize}, but that of quant_state is {own_blocksize}")
    args = (A, quant_state.scales(), own_blocksize, quant_type, shape)
    if out is None:
        out = ops.dequantize_4bit.default(*args, quant_state.dtype)
    else:
        ops.dequantize_4bit.out(*args, out.dtype, out)
    transposed = A.ndim == 2 and A.shape[0] == 1 and A.shape[1] > 1
    return out.t() if transposed else out


def dequantize_nf4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """`dequantize_4bit` of NF4 codes. Raises ValueError for a state of another type."""
    return _dequantize_type("nf4", A, quant_state, absmax, out, blocksize)


def dequantize_fp4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """`dequantize_4bit` of FP4 codes. Raises ValueError for a state of another type."""
    return _dequantize_type("fp4", A, quant_state, absmax, out, blocksize)


def _dequantize_type(
    quant_type: str,
    A: Tensor,
    quant_state: QuantState | None,
    absmax: Tensor | None,
    out: Tensor | None,
    blocksize: int | None,
) -> Tensor:
    if quant_state is not None and quant_state.quant_type != quant_type:
        raise ValueError(f"quant_state is of {quant_state.quant_type}, expected {quant_type}")
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, quant_type)


def gemv_4bit(
    A: Tensor,
    B: Tensor,
    out: Tensor | None = None,
    transposed_A: bool = False,
    transposed_B: bool = False,
    state: QuantState | None = None,
) -> Tensor:
    """`A @ W.T` for packed 4-bit codes B of a weight W of shape `state.shape` = `[N, K]`; A is `[…, K]`, any rows.

    Raises ValueError without a state, for one of other than 4-bit codes, or for a transposed operand.
    """
    if state is None:
        raise ValueError("state is needed: it has the statistics of B")
    if transposed_A or transposed_B:
        raise ValueError("A and B are taken as they are: transposed_A and transposed_B must be False")
    shape, blocksize, quant_type = state.four_bit_format()
    absmax, *nested = state.statistics()
    args = (A, B, shape, absmax, blocksize, quant_type, None, *nested)
    if out is None:
        return ops.gemm_4bit.default(*args)
    ops.gemm_4bit.out(*args, out)
    return out
