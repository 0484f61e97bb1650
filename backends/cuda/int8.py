"""LLM.int8() on NVIDIA GPUs (arXiv:2208.07339)."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import row_count
from bnb_core.ops_registry.memory import NAMES, aligned, contiguous, filled, new_like

from .streams import place


class _Outliers(NamedTuple):
    """Outlier columns of A and of the weight, `number` [1] of them: see csrc/int8/int8_mm_dequant.h."""

    A: Tensor
    weight: Tensor
    columns: Tensor
    number: Tensor
    rounded: bool


class Int8:
    """The kernels of a native module. Many rows are multiplied by torch (cuBLASLt), where it takes the sizes."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def int8_vectorwise_quant(self, A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes like A, absmax per row, and with a threshold the columns (int64) that hold an outlier."""
        q, absmax, outliers = self.int8_vectorwise_quant_mask(A, threshold)
        return q, absmax, _numbers(outliers, threshold)

    def int8_vectorwise_quant_mask(self, A: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Codes like A, absmax per row, and a mask [K] of the columns that hold an outlier."""
        A, rows, width = A.contiguous(), row_count(A), A.shape[-1]
        q, absmax = new_like(A, torch.int8), A.new_empty(rows, dtype=torch.float32)
        outliers = A.new_zeros(width, dtype=torch.bool)
        self._native.int8_vectorwise_quant(
            *place(A),
            *(A.data_ptr(), NAMES[A.dtype], rows, width, threshold),
            *(q.data_ptr(), absmax.data_ptr(), outliers.data_ptr()),
        )
        self._clear(q, outliers, threshold)
        return q, absmax, outliers

    def int8_double_quant(
        self, A: Tensor, threshold: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Codes by row, codes by column, absmax of the rows, absmax of the columns, outlier columns."""
        A, rows, width = A.contiguous(), row_count(A), A.shape[-1]
        by_row, row_absmax, outliers = self.int8_vectorwise_quant_mask(A, threshold)
        by_column, col_absmax = new_like(A, torch.int8), A.new_zeros(width, dtype=torch.float32)
        self._native.int8_columnwise_quant(
            *place(A),
            *(A.data_ptr(), NAMES[A.dtype], rows, width, threshold),
            *(by_column.data_ptr(), col_absmax.data_ptr()),
        )
        self._clear(by_column, outliers, threshold)
        return by_row, by_column, row_absmax, col_absmax, _numbers(outliers, threshold)

    def int8_vectorwise_dequant(self, A: Tensor, stats: Tensor) -> Tensor:
        """`A * stats / 127` of each row, in fp32."""
        result = new_like(A, torch.float32)
        A, stats = A.contiguous(), stats.contiguous()
        self._native.int8_vectorwise_dequant(
            *place(A), A.data_ptr(), stats.data_ptr(), row_count(A), A.shape[-1], result.data_ptr()
        )
        return result

    def int8_mm(self, A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
        """A [..., K] times the transpose of B [N, K], exact in int32."""
        M, (N, K) = row_count(A), B.shape
        A, B = A.contiguous(), B.contiguous()
        result = A.new_empty(*A.shape[:-1], N, dtype=torch.int32)
        if M > 16 and N and K and N % 8 == 0 and K % 8 == 0:
            # cuBLASLt refuses int8 at other addresses than multiples of 4.
            torch._int_mm(aligned(A).view(M, K), aligned(B).t(), out=result.view(M, N))
        else:
            self._native.int8_mm(*place(A), A.data_ptr(), B.data_ptr(), M, N, K, result.data_ptr())
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
        return self._scaled(A.contiguous(), row_stats, col_stats, bias, dtype or torch.float16)

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
        return self._scaled(self.int8_mm(A, B), row_stats, col_stats, bias, dtype or torch.float16)

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
        sums = self.int8_mm(CA, CB)
        if outlier_cols is None or not outlier_cols.numel():
            return self._scaled(sums, SCA, SCB, bias, A.dtype), A.new_empty(0)
        A, CB, columns = A.contiguous(), CB.contiguous(), outlier_cols.contiguous()
        # Refuses columns that A, and so the weight, does not have.
        chosen = A.view(row_count(A), A.shape[-1]).index_select(1, columns)
        count = torch.full((1,), columns.numel(), dtype=torch.int64, device=A.device)
        outliers = _Outliers(A, CB, columns, count, rounded=True)
        return self._scaled(sums, SCA, SCB, bias, A.dtype, outliers), chosen

    def int8_linear(
        self, A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None = None, threshold: float = 0.0
    ) -> Tensor:
        """A linear layer with the int8 weight CB: quantize A, multiply, add outliers and bias, round once.

        How many outliers there are stays on the device: nothing waits for it.
        """
        A, CB = A.contiguous(), CB.contiguous()
        CA, SCA, mask = self.int8_vectorwise_quant_mask(A, threshold)
        outliers = None
        if threshold > 0:
            K = A.shape[-1]
            numbers = torch.empty(K + 1, dtype=torch.int64, device=A.device)
            columns, count = numbers[:K], numbers[K:]
            self._native.int8_list_columns(*place(A), mask.data_ptr(), K, columns.data_ptr(), count.data_ptr())
            outliers = _Outliers(A, CB, columns, count, rounded=False)
        return self._scaled(self.int8_mm(CA, CB), SCA, SCB, bias, A.dtype, outliers)

    def _clear(self, q: Tensor, outliers: Tensor, threshold: float) -> None:
        if threshold > 0:
            self._native.int8_clear_columns(
                *place(q), outliers.data_ptr(), row_count(q), outliers.numel(), q.data_ptr()
            )

    def _scaled(
        self,
        sums: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        outliers: _Outliers | None = None,
    ) -> Tensor:
        result = new_like(sums, dtype)
        row_stats, col_stats, bias = row_stats.contiguous(), col_stats.contiguous(), contiguous(bias)
        if bias is not None and bias.dtype != dtype:
            bias = bias.float()
        of: tuple[int, ...] = (0, 0, 0, 0, 0, False)
        if outliers is not None:
            addresses = (tensor.data_ptr() for tensor in outliers[:4])
            of = (*addresses, outliers.A.shape[-1], outliers.rounded)
        self._native.int8_mm_dequant(
            *place(sums),
            *(sums.data_ptr(), row_stats.data_ptr(), col_stats.data_ptr()),
            *((0, "float32") if bias is None else (bias.data_ptr(), NAMES[bias.dtype])),
            *(row_count(sums), sums.shape[-1]),
            *of,
            *(NAMES[dtype], result.data_ptr()),
        )
        return result


def _numbers(outliers: Tensor, threshold: float) -> Tensor | None:
    return torch.nonzero(outliers).squeeze_(1) if threshold > 0 else None
