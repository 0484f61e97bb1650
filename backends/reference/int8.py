"""LLM.int8(): activations and weights in int8 with a scale per row, outlier columns kept aside (arXiv:2208.07339).

Activations [..., K] are treated as rows of K; a weight is [N, K]. A scale is the largest magnitude of its row, a code
counts 127ths of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bnb_core.ops_registry.formats import EXACT_K
from bnb_core.ops_registry.precision import fp32_product

from .blockwise import CHUNK, finite_or_nan

# Stands for 1 / 127**2, that is 6.200012e-05: the public package has this on a CPU, 2e-5 more, and is followed.
PRODUCT_SCALE = 6.200124e-05

# From here up 1 / absmax * 127 does not overflow.
SMALLEST_INVERTED = 2.0**-120


def int8_vectorwise_quant(
    A: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes like A, absmax per row, and with a threshold the columns (int64) that hold an outlier: `|A| >= threshold`.

    Outliers do not count for absmax, and all codes of their columns are 0. A row with NaN, or Inf that is no outlier,
    has absmax NaN and codes 0.
    """
    q, absmax, outlier_columns = int8_vectorwise_quant_mask(A, threshold)
    return q, absmax, column_indices(outlier_columns, threshold)


def int8_vectorwise_quant_mask(A: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`int8_vectorwise_quant` with the outlier columns as a mask [K]; all False where `threshold` is 0."""
    rows = as_rows(A)
    q, absmax = quantize_rows(rows, threshold)
    outlier_columns = columns_with_outliers(rows, threshold)
    return q.masked_fill_(outlier_columns, 0).view(A.shape), absmax, outlier_columns


def int8_vectorwise_dequant(A: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """`A * stats / 127` of each row, in fp32."""
    return (as_rows(A).float() * stats.reshape(-1, 1) / 127).view(A.shape)


def int8_double_quant(
    A: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes by row, codes by column, absmax of the rows, absmax of the columns, outlier columns.

    Outliers count for neither absmax; their columns are 0 in both codes.
    """
    rows = as_rows(A)
    by_row, row_absmax = quantize_rows(rows, threshold)
    by_column, col_absmax = quantize_rows(rows.t(), threshold)
    outlier_columns = columns_with_outliers(rows, threshold)
    by_row, by_column = (q.masked_fill(outlier_columns, 0).view(A.shape) for q in (by_row, by_column.t().contiguous()))
    return by_row, by_column, row_absmax, col_absmax, column_indices(outlier_columns, threshold)


def int8_mm(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A [..., K] times the transpose of B [N, K], exact in int32."""
    rows = as_rows(A)
    total = torch.zeros(rows.shape[0], B.shape[0], dtype=torch.int32, device=A.device)
    for start in range(0, B.shape[1], EXACT_K):
        part = slice(start, start + EXACT_K)
        total += fp32_product(rows[:, part].float(), B[:, part].float()).to(torch.int32)
    total = total.view(*A.shape[:-1], B.shape[0])
    return total if out is None else out.copy_(total)


def int8_mm_dequant(
    A: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`A * row_stats * col_stats / 127**2 + bias` in fp32, rounded once to `dtype` (None: fp16)."""
    return scale_product(A, row_stats, col_stats, bias).to(dtype or torch.float16).view(A.shape)


class Int8Products:
    """The operators made of an exact product, of quantized rows and of their values."""

    def __init__(self, mm: Callable[..., Any], quant: Callable[..., Any], dequant: Callable[..., Any]) -> None:
        self.mm, self.quant, self.dequant = mm, quant, dequant

    def int8_scaled_mm(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        row_stats: torch.Tensor,
        col_stats: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """`int8_mm` and `int8_mm_dequant` in one."""
        return int8_mm_dequant(self.mm(A, B), row_stats, col_stats, dtype, bias)

    def int8_mixed_scaled_mm(
        self,
        A: torch.Tensor,
        CA: torch.Tensor,
        CB: torch.Tensor,
        SCA: torch.Tensor,
        SCB: torch.Tensor,
        outlier_cols: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The int8 product of the codes CA and CB plus the product of A's outlier columns with the dequantized weight.

        As in the public package the parts meet in A's dtype: the int8 product is rounded to it, and so is the weight of
        the outliers; their product and the sum are fp32, rounded once more. Second result: A's outlier columns
        [rows, outliers], a tensor [0] where there are none.
        """
        result = self.int8_scaled_mm(CA, CB, SCA, SCB, bias, A.dtype)
        if outlier_cols is None or not outlier_cols.numel():
            return result, A.new_empty(0)
        outliers = as_rows(A).index_select(1, outlier_cols)
        weight = self.dequant(CB.index_select(1, outlier_cols), SCB).to(A.dtype)
        total = fp32_product(outliers.float(), weight.float()) + as_rows(result)
        return total.to(A.dtype).view(result.shape), outliers

    def int8_linear(
        self,
        A: torch.Tensor,
        CB: torch.Tensor,
        SCB: torch.Tensor,
        bias: torch.Tensor | None = None,
        threshold: float = 0.0,
    ) -> torch.Tensor:
        """A linear layer with the int8 weight CB [N, K]: quantize A, multiply, add outliers and bias.

        Outliers meet the dequantized weight in fp32, all parts are summed in fp32 and rounded once to A's dtype.
        """
        CA, SCA, outlier_cols = self.quant(A, threshold)
        result = scale_product(self.mm(CA, CB), SCA, SCB, bias)
        if outlier_cols is not None and outlier_cols.numel():
            outliers = as_rows(A).index_select(1, outlier_cols).float()
            result += fp32_product(outliers, self.dequant(CB.index_select(1, outlier_cols), SCB))
        return result.to(A.dtype).view(*A.shape[:-1], CB.shape[0])


_products = Int8Products(int8_mm, int8_vectorwise_quant, int8_vectorwise_dequant)
int8_scaled_mm = _products.int8_scaled_mm
int8_mixed_scaled_mm = _products.int8_mixed_scaled_mm
int8_linear = _products.int8_linear


def as_rows(A: torch.Tensor) -> torch.Tensor:
    """A [..., K] as [rows, K]."""
    return A.reshape(math.prod(A.shape[:-1]), A.shape[-1])


def runs(rows: torch.Tensor) -> Iterator[slice]:
    """Slices of about `CHUNK` elements of rows that are not empty."""
    step = max(1, CHUNK // max(1, rows.shape[1]))
    return (slice(start, start + step) for start in range(0, rows.shape[0] if rows.numel() else 0, step))


def columns_with_outliers(rows: torch.Tensor, threshold: float) -> torch.Tensor:
    """Mask [K] of the columns that hold an element of at least `threshold`; all False where that is 0."""
    found = torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    if threshold > 0:
        for run in runs(rows):
            found |= (rows[run].float().abs() >= threshold).any(dim=0)
    return found


def column_indices(mask: torch.Tensor, threshold: float) -> torch.Tensor | None:
    return torch.nonzero(mask).view(-1) if threshold > 0 else None


def quantize_rows(rows: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and absmax of each row, both without the elements of at least `threshold` (0: with all).

    Codes are `round(x * (1 / absmax * 127))` with each step in fp32 and ties to even; where absmax is too small for the
    quotient they are `round(x / absmax * 127)`.
    """
    codes = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    absmax = torch.zeros(rows.shape[0], dtype=torch.float32, device=rows.device)
    for run in runs(rows):
        x = rows[run].float()
        if threshold > 0:
            x = x.masked_fill(x.abs() >= threshold, 0.0)
        absmax[run] = finite_or_nan(x.abs().amax(dim=1))
        scale = absmax[run, None]
        t = torch.where(scale >= SMALLEST_INVERTED, x * (1 / scale * 127), x / scale * 127)
        codes[run] = torch.where(scale > 0, torch.round(t), 0.0).to(torch.int8)
    return codes, absmax


def scale_product(
    product: torch.Tensor, row_stats: torch.Tensor, col_stats: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Integer products [..., N] as the fp32 numbers they stand for, plus bias: [rows, N]."""
    result = as_rows(product).float() * row_stats.reshape(-1, 1) * (col_stats.reshape(-1) * PRODUCT_SCALE)
    return result if bias is None else result.add_(bias)
