"""Names of older versions of the public package, as thin functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .blockwise import dequantize_blockwise, quantize_blockwise
from .buffers import copied_to
from .int8 import int8_double_quant, int8_linear_matmul, int8_mm_dequant

__all__ = [
    "C",
    "create_quantile_map",
    "dequantize",
    "dequantize_no_absmax",
    "double_quant",
    "estimate_quantiles",
    "igemmlt",
    "mm_dequant",
    "percentile_clipping",
    "quantize",
    "quantize_no_absmax",
    "vectorwise_dequant",
    "vectorwise_mm_dequant",
    "vectorwise_quant",
]

# The largest int8 code of a row.
C = 127.0

ops = torch.ops.bnb_core


def percentile_clipping(
    grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Records the norm of grad in gnorm_vec (fp32 `[100]`), in place, and finds the scale that clips it.

    The limit is a percentile of the last 100 norms. Returns the norm, the limit and the scale: 0-dim fp32 tensors.
    """
    return ops.percentile_clipping.default(grad, gnorm_vec, step, percentile)


def estimate_quantiles(
    A: Tensor, out: Tensor | None = None, offset: float = 1 / 512, num_quantiles: int = 256
) -> Tensor:
    """`num_quantiles` quantiles of A at evenly spaced positions from `offset` to `1 - offset`, fp32, ascending."""
    return copied_to(out, ops.estimate_quantiles.default(A, offset, num_quantiles))


def create_quantile_map(A: Tensor, total_bits: int = 8) -> Tensor:
    """A map of the quantiles of A and zero, over the largest magnitude: fp32 `[256]`, ascending, on A's device."""
    quantiles = estimate_quantiles(A, num_quantiles=2**total_bits - 1)
    values = torch.cat([quantiles, quantiles.new_zeros(256 - quantiles.numel())])
    return values.sort().values / values.abs().max()


def quantize(A: Tensor, code: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Quantizes to uint8 codes by the largest magnitude of all of A. Returns codes and `(absmax [1], code)`."""
    codes, state = quantize_blockwise(A, code, out=out, blocksize=max(A.numel(), 1))
    assert state.code is not None
    return codes, (state.absmax, state.code)


def dequantize(
    A: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The values of codes from `quantize`, from its state or from `absmax` and `code`; fp32, or the dtype of `out`.

    Raises ValueError for both or neither of `state` and `absmax`.
    """
    if (state is None) == (absmax is None):
        raise ValueError("give either state or absmax")
    if state is not None:
        absmax, code = state
    assert absmax is not None
    return dequantize_blockwise(A, absmax=absmax.reshape(-1), code=code, out=out, blocksize=max(A.numel(), 1))


def quantize_no_absmax(A: Tensor, code: Tensor, out: Tensor | None = None) -> Tensor:
    """The index of the entry of `code` (ascending) nearest to each value of A; of two equally near ones the lower."""
    return copied_to(out, torch.bucketize(A.float(), (code[1:] + code[:-1]) / 2).to(torch.uint8))


def dequantize_no_absmax(A: Tensor, code: Tensor, out: Tensor | None = None) -> Tensor:
    """`code[A]`."""
    return copied_to(out, code[A.long()])


def _check_vector_type(quant_type: str) -> None:
    if quant_type not in ("vector", "row", "linear"):
        raise ValueError(f"quant_type is {quant_type!r}, expected 'vector', 'row' or 'linear'")


def vectorwise_quant(x: Tensor, dim: int = 1, quant_type: str = "vector") -> tuple[Tensor, Tensor]:
    """Quantizes to int8 by the largest magnitude along `dim` ("vector", "row") or of all of x ("linear").

    Returns codes and the magnitudes, which keep `dim`. Raises ValueError for another quant_type.
    """
    _check_vector_type(quant_type)
    magnitudes = x.abs().float()
    largest = magnitudes.max() if quant_type == "linear" else magnitudes.amax(dim=dim, keepdim=True)
    ratio = torch.where(largest > 0, x / largest, 0.0)
    return torch.round(ratio * C).to(torch.int8), largest


def vectorwise_dequant(xq: Tensor, max1: Tensor, quant_type: str = "vector") -> Tensor:
    """The values of codes from `vectorwise_quant`, fp32. Raises ValueError for another quant_type."""
    _check_vector_type(quant_type)
    return xq / C * max1


def vectorwise_mm_dequant(
    xq: Tensor, S1: Tensor, S2: Tensor, dtype: torch.dtype = torch.float16, quant_type: str = "vector"
) -> Tensor:
    """The values of an int32 product `[M, N]` of codes from `vectorwise_quant`, of the given dtype.

    S1, S2: the magnitudes of the left operand's rows, `[M, 1]`, and of the right one's columns, `[1, N]`; 0-dim for
    "linear". Raises ValueError for another quant_type.
    """
    _check_vector_type(quant_type)
    return (xq * (S1.float() / C) * (S2.float() / C)).to(dtype)


double_quant = int8_double_quant

Layout = tuple[torch.Size, str]


def _only_rows(*layouts: Layout | None) -> None:
    """Raises ValueError for one of the tiled layouts that older versions had."""
    for layout in layouts:
        if layout is not None and layout[1] != "row":
            raise ValueError(f"the layout is {layout[1]!r}, expected 'row'")


def igemmlt(
    A: Tensor,
    B: Tensor,
    SA: Layout | None,
    SB: Layout | None,
    out: Tensor | None = None,
    Sout: Layout | None = None,
    dtype: torch.dtype = torch.int32,
) -> tuple[Tensor, Layout]:
    """`int8_linear_matmul` with layouts `(shape, "row")`: returns the product and its layout."""
    _only_rows(SA, SB, Sout)
    product = int8_linear_matmul(A, B, out, dtype)
    return product, (product.shape, "row")


def mm_dequant(
    A: Tensor,
    quant_state: Layout | None,
    row_stats: Tensor,
    col_stats: Tensor,
    out: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`int8_mm_dequant` with the layout of A, `(shape, "row")`."""
    _only_rows(quant_state)
    return int8_mm_dequant(A, row_stats, col_stats, out, bias)
