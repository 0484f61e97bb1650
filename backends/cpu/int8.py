"""LLM.int8() on the CPU: activations [..., K] are rows of K, a weight is [N, K], products are exact in int32."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.memory import NAMES, address, contiguous, filled, new_like, writable

from .levels import at_each_level


class Int8:
    """The kernels of one level."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def int8_vectorwise_quant(self, A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes like A, absmax per row, and with a threshold the columns that hold an outlier."""
        outliers = A.new_zeros(A.shape[-1], dtype=torch.bool) if threshold > 0 else None
        q, absmax = self._quantize(A, threshold, outliers)
        return q, absmax, None if outliers is None else torch.nonzero(outliers).squeeze_(1)

    def int8_vectorwise_quant_mask(self, A: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Codes like A, absmax per row, and a mask [K] of the columns that hold an outlier."""
        outliers = A.new_zeros(A.shape[-1], dtype=torch.bool)
        return *self._quantize(A, threshold, outliers), outliers

    def _quantize(self, A: Tensor, threshold: float, outliers: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = math.prod(A.shape[:-1])
        q, absmax = new_like(A, torch.int8), A.new_empty(rows, dtype=torch.float32)
        A = A.contiguous()
        self._native.int8_vectorwise_quant(
            A.data_ptr(),
            NAMES[A.dtype],
            rows,
            A.shape[-1],
            threshold,
            q.data_ptr(),
            absmax.data_ptr(),
            address(outliers),
            torch.get_num_threads(),
        )
        return q, absmax

    def int8_vectorwise_dequant(self, A: Tensor, stats: Tensor) -> Tensor:
        """`A * stats / 127` of each row, in fp32."""
        result = new_like(A, torch.float32)
        A, stats = A.contiguous(), stats.contiguous()
        self._native.int8_vectorwise_dequant(
            A.data_ptr(),
            stats.data_ptr(),
            math.prod(A.shape[:-1]),
            A.shape[-1],
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result

    def int8_double_quant(
        self, A: Tensor, threshold: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Codes by row, codes by column, absmax of the rows, absmax of the columns, outlier columns."""
        rows, K = math.prod(A.shape[:-1]), A.shape[-1]
        by_row, by_column = (new_like(A, torch.int8) for _ in range(2))
        row_absmax, col_absmax = (A.new_empty(n, dtype=torch.float32) for n in (rows, K))
        outliers = A.new_zeros(K, dtype=torch.bool) if threshold > 0 else None
        A = A.contiguous()
        self._native.int8_double_quant(
            A.data_ptr(),
            NAMES[A.dtype],
            rows,
            K,
            threshold,
            by_row.data_ptr(),
            by_column.data_ptr(),
            row_absmax.data_ptr(),
            col_absmax.data_ptr(),
            address(outliers),
            torch.get_num_threads(),
        )
        found = None if outliers is None else torch.nonzero(outliers).squeeze_(1)
        return by_row, by_column, row_absmax, col_absmax, found

    def int8_mm(self, A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
        """A times the transpose of B, exact in int32."""
        result = A.new_empty(*A.shape[:-1], B.shape[0], dtype=torch.int32) if out is None else writable(out, A, B)
        A, B = A.contiguous(), B.contiguous()
        self._native.int8_mm(
            A.data_ptr(),
            B.data_ptr(),
            math.prod(A.shape[:-1]),
            *B.shape,
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result if out is None else filled(out, result)

    def int8_mm_dequant(
        self,
        A: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        dtype: torch.dtype | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """`A * row_stats * (col_stats * 6.200124e-5) + bias` in fp32, rounded once to `dtype` (None: fp16)."""
        result = new_like(A, dtype or torch.float16)
        A, row_stats, col_stats, bias = A.contiguous(), row_stats.contiguous(), col_stats.contiguous(), contiguous(bias)
        self._native.int8_mm_dequant(
            A.data_ptr(),
            row_stats.data_ptr(),
            col_stats.data_ptr(),
            *_optional(bias),
            math.prod(A.shape[:-1]),
            A.shape[-1],
            NAMES[result.dtype],
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result

    def int8_scaled_mm(
        self,
        A: Tensor,
        B: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """`int8_mm` and `int8_mm_dequant` in one."""
        return self._scaled_mm(A, B, row_stats, col_stats, bias, dtype or torch.float16, None, None)

    def int8_mixed_scaled_mm(
        self,
        A: Tensor,
        CA: Tensor,
        CB: Tensor,
        SCA: Tensor,
        SCB: Tensor,
        outlier_cols: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`int8_scaled_mm` of the codes plus the product of A's outlier columns with the dequantized weight."""
        if outlier_cols is None or not outlier_cols.numel():
            return self._scaled_mm(CA, CB, SCA, SCB, bias, A.dtype, None, None), A.new_empty(0)
        # Refuses columns that A, and so the weight, does not have.
        outliers = A.reshape(math.prod(A.shape[:-1]), A.shape[-1]).index_select(1, outlier_cols)
        return self._scaled_mm(CA, CB, SCA, SCB, bias, A.dtype, outliers, outlier_cols.contiguous()), outliers

    def _scaled_mm(
        self,
        A: Tensor,
        B: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        outliers: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor:
        result = A.new_empty(*A.shape[:-1], B.shape[0], dtype=dtype)
        A, B, bias = A.contiguous(), B.contiguous(), contiguous(bias)
        row_stats, col_stats = row_stats.contiguous(), col_stats.contiguous()
        self._native.int8_scaled_mm(
            A.data_ptr(),
            B.data_ptr(),
            math.prod(A.shape[:-1]),
            *B.shape,
            row_stats.data_ptr(),
            col_stats.data_ptr(),
            *_optional(bias),
            address(outliers),
            address(columns),
            0 if columns is None else columns.numel(),
            NAMES[dtype],
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result

    def int8_linear(
        self, A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None = None, threshold: float = 0.0
    ) -> Tensor:
        """A linear layer with the int8 weight CB: quantize A, multiply, add outliers and bias, round once."""
        result = A.new_empty(*A.shape[:-1], CB.shape[0])
        A, CB, SCB, bias = A.contiguous(), CB.contiguous(), SCB.contiguous(), contiguous(bias)
        self._native.int8_linear(
            A.data_ptr(),
            NAMES[A.dtype],
            math.prod(A.shape[:-1]),
            *CB.shape,
            CB.data_ptr(),
            SCB.data_ptr(),
            *_optional(bias),
            threshold,
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result


def _optional(tensor: Tensor | None) -> tuple[int, str]:
    """Address and dtype."""
    return (0, "") if tensor is None else (tensor.data_ptr(), NAMES[tensor.dtype])


kernels = at_each_level(Int8)
