"""LLM.int8(): row-wise quantization, exact int8 products, outliers in the activations' dtype (arXiv:2208.07339)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cases import int8 as inputs
from ..checks import Check, row_count
from ..formats import FLOATS, LARGEST_K
from ..op import Op, Result, define
from ..tolerance import EXACT, PRODUCT, Tolerance

SCALED = Tolerance({torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3})

_quant = Check("int8_vectorwise_quant")
_mask = Check("int8_vectorwise_quant_mask")
_dequant = Check("int8_vectorwise_dequant")
_double = Check("int8_double_quant")
_mm = Check("int8_mm")
_mm_dequant = Check("int8_mm_dequant")
_scaled = Check("int8_scaled_mm")
_mixed = Check("int8_mixed_scaled_mm")
_linear = Check("int8_linear")


def _check_activations(check: Check, A: Tensor, threshold: float) -> None:
    check.dtype("A", A, FLOATS)
    check.at_least_1d("A", A)
    check.at_least("threshold", threshold, 0)


def _check_stats(check: Check, name: str, stats: Tensor, count: Any, because: Callable[[], str]) -> None:
    check.dtype(name, stats, (torch.float32,))
    check.numel(name, stats, count, because)


def _check_product(check: Check, A: Tensor, B: Tensor, names: tuple[str, str] = ("A", "B")) -> None:
    a, b = names
    check.dtype(a, A, (torch.int8,))
    check.dtype(b, B, (torch.int8,))
    check.at_least_1d(a, A)
    check.ndim(b, B, 2)
    _check_width(check, A, B, names)


def _check_width(check: Check, A: Tensor, B: Tensor, names: tuple[str, str]) -> None:
    a, b = names
    check.that(
        A.shape[-1] == B.shape[1],
        lambda: f"{a} has shape {tuple(A.shape)}, expected {B.shape[1]} as its last size, as {b} {tuple(B.shape)} has",
    )
    check.that(
        B.shape[1] <= LARGEST_K, lambda: f"{b} has {B.shape[1]} columns, expected at most {LARGEST_K}: int32 overflows"
    )


def _check_bias(check: Check, bias: Tensor | None, columns: Any) -> None:
    if bias is not None:
        check.dtype("bias", bias, FLOATS)
        check.shape("bias", bias, (columns,))


def _check_output_dtype(check: Check, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        check.value("dtype", dtype, FLOATS)


def _check_quant(A: Tensor, threshold: float = 0.0) -> None:
    _check_activations(_quant, A, threshold)


def _quant_results(A: Tensor, threshold: float = 0.0) -> tuple[Result | None, ...]:
    outliers = Result((None,), torch.int64) if threshold > 0 else None
    return Result(A.shape, torch.int8), Result((row_count(A),), torch.float32), outliers


def _check_mask(A: Tensor, threshold: float) -> None:
    _check_activations(_mask, A, threshold)


def _mask_results(A: Tensor, threshold: float) -> tuple[Result, ...]:
    return (
        Result(A.shape, torch.int8),
        Result((row_count(A),), torch.float32),
        Result((A.shape[-1],), torch.bool),
    )


def _check_dequant(A: Tensor, stats: Tensor) -> None:
    _dequant.dtype("A", A, (torch.int8,))
    _dequant.at_least_1d("A", A)
    _check_stats(_dequant, "stats", stats, row_count(A), lambda: f"A of shape {tuple(A.shape)}")
    _dequant.one_device(A, stats=stats)


def _dequant_results(A: Tensor, stats: Tensor) -> tuple[Result]:
    return (Result(A.shape, torch.float32),)


def _check_double(A: Tensor, threshold: float = 0.0) -> None:
    _check_activations(_double, A, threshold)


def _double_results(A: Tensor, threshold: float = 0.0) -> tuple[Result | None, ...]:
    codes, columns = Result(A.shape, torch.int8), Result((A.shape[-1],), torch.float32)
    outliers = Result((None,), torch.int64) if threshold > 0 else None
    return codes, codes, Result((row_count(A),), torch.float32), columns, outliers


def _check_mm(A: Tensor, B: Tensor) -> None:
    _check_product(_mm, A, B)
    _mm.one_device(A, B=B)


def _mm_results(A: Tensor, B: Tensor) -> tuple[Result]:
    return (Result((*A.shape[:-1], B.shape[0]), torch.int32),)


def _check_mm_dequant(
    A: Tensor, row_stats: Tensor, col_stats: Tensor, dtype: torch.dtype | None = None, bias: Tensor | None = None
) -> None:
    _mm_dequant.dtype("A", A, (torch.int32,))
    _mm_dequant.at_least_1d("A", A)
    _check_stats(_mm_dequant, "row_stats", row_stats, row_count(A), lambda: f"A of shape {tuple(A.shape)}")
    _check_stats(_mm_dequant, "col_stats", col_stats, A.shape[-1], lambda: f"A of shape {tuple(A.shape)}")
    _check_output_dtype(_mm_dequant, dtype)
    _check_bias(_mm_dequant, bias, A.shape[-1])
    _mm_dequant.one_device(A, row_stats=row_stats, col_stats=col_stats, bias=bias)


def _mm_dequant_results(
    A: Tensor, row_stats: Tensor, col_stats: Tensor, dtype: torch.dtype | None = None, bias: Tensor | None = None
) -> tuple[Result]:
    return (Result(A.shape, dtype or torch.float16),)


def _check_scaled(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    _check_product(_scaled, A, B)
    _check_stats(_scaled, "row_stats", row_stats, row_count(A), lambda: f"A of shape {tuple(A.shape)}")
    _check_stats(_scaled, "col_stats", col_stats, B.shape[0], lambda: f"B of shape {tuple(B.shape)}")
    _check_output_dtype(_scaled, dtype)
    _check_bias(_scaled, bias, B.shape[0])
    _scaled.one_device(A, B=B, row_stats=row_stats, col_stats=col_stats, bias=bias)


def _scaled_results(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Result]:
    return (Result((*A.shape[:-1], B.shape[0]), dtype or torch.float16),)


def _check_mixed(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    _mixed.dtype("A", A, FLOATS)
    _check_product(_mixed, CA, CB, ("CA", "CB"))
    _mixed.shape("A", A, CA.shape)
    _check_stats(_mixed, "SCA", SCA, row_count(CA), lambda: f"CA of shape {tuple(CA.shape)}")
    _check_stats(_mixed, "SCB", SCB, CB.shape[0], lambda: f"CB of shape {tuple(CB.shape)}")
    if outlier_cols is not None:
        _mixed.dtype("outlier_cols", outlier_cols, (torch.int64,))
        _mixed.ndim("outlier_cols", outlier_cols, 1)
    _check_bias(_mixed, bias, CB.shape[0])
    _mixed.one_device(A, CA=CA, CB=CB, SCA=SCA, SCB=SCB, outlier_cols=outlier_cols, bias=bias)


def _mixed_results(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Result, ...]:
    outliers = 0 if outlier_cols is None else outlier_cols.shape[0]
    # A symbolic number of columns counts as some.
    none = isinstance(outliers, int) and outliers == 0
    columns = (0,) if none else (row_count(A), outliers)
    return Result((*A.shape[:-1], CB.shape[0]), A.dtype), Result(columns, A.dtype)


def _check_linear(A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None = None, threshold: float = 0.0) -> None:
    _check_activations(_linear, A, threshold)
    _linear.dtype("CB", CB, (torch.int8,))
    _linear.ndim("CB", CB, 2)
    _check_width(_linear, A, CB, ("A", "CB"))
    _check_stats(_linear, "SCB", SCB, CB.shape[0], lambda: f"CB of shape {tuple(CB.shape)}")
    _check_bias(_linear, bias, CB.shape[0])
    _linear.one_device(A, CB=CB, SCB=SCB, bias=bias)


def _linear_results(
    A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> tuple[Result]:
    return (Result((*A.shape[:-1], CB.shape[0]), A.dtype),)


define(
    Op(
        schema="int8_vectorwise_quant(Tensor A, float threshold=0.0)"
        " -> (Tensor q, Tensor row_absmax, Tensor? outlier_cols)",
        check=_check_quant,
        results=_quant_results,
        cases=lambda make: inputs.activation_cases(make, (0.0, 3.0, 6.0)),
        bad_cases=inputs.bad_activations,
        tolerance=EXACT,
        doc="""Quantizes each row to int8 by its largest magnitude: `round(A * (1 / row_absmax * 127))`, ties to even.

        A: `[..., K]`, fp32, fp16 or bf16; rows are the flattened leading sizes. threshold: above 0, values of at least
        that magnitude are outliers: they do not count for row_absmax, and their columns are 0 in q. q: int8 like A.
        row_absmax: fp32 `[rows]`; NaN (and codes 0) for a row with NaN, or with Inf that is no outlier. outlier_cols:
        int64, sorted column numbers; None for threshold 0.
        """,
    )
)

define(
    Op(
        schema="int8_vectorwise_quant_mask(Tensor A, float threshold)"
        " -> (Tensor q, Tensor row_absmax, Tensor outlier_mask)",
        check=_check_mask,
        results=_mask_results,
        cases=lambda make: inputs.activation_cases(make, (0.0, 3.0, 6.0)),
        bad_cases=inputs.bad_activations,
        tolerance=EXACT,
        doc="""`int8_vectorwise_quant` with the outlier columns as a mask `[K]`, so that no shape depends on data.

        A, threshold: as there; threshold 0 has no outliers.
        """,
    )
)

define(
    Op(
        schema="int8_vectorwise_dequant(Tensor A, Tensor stats) -> Tensor",
        check=_check_dequant,
        results=_dequant_results,
        cases=inputs.dequant_cases,
        bad_cases=inputs.bad_dequant,
        tolerance=Tolerance({torch.float32: 1e-6}),
        doc="""The fp32 values of row-wise int8 codes: `A * stats / 127`. A: int8 `[..., K]`. stats: fp32 per row.""",
    )
)

define(
    Op(
        schema="int8_double_quant(Tensor A, float threshold=0.0)"
        " -> (Tensor q_row, Tensor q_col, Tensor row_absmax, Tensor col_absmax, Tensor? outlier_cols)",
        check=_check_double,
        results=_double_results,
        cases=lambda make: inputs.activation_cases(make, (0.0, 6.0)),
        bad_cases=inputs.bad_activations,
        tolerance=EXACT,
        doc="""Quantizes to int8 by rows and by columns; outliers of the threshold as in `int8_vectorwise_quant`.

        q_row, q_col: int8 like A. row_absmax: fp32 `[rows]`. col_absmax: fp32 `[K]`.
        """,
    )
)

define(
    Op(
        schema="int8_mm(Tensor A, Tensor B) -> Tensor",
        check=_check_mm,
        results=_mm_results,
        cases=inputs.mm_cases,
        bad_cases=inputs.bad_mm,
        out=("out",),
        tolerance=EXACT,
        doc="""The exact int32 product `A @ B.T` of int8 A `[..., K]` and B `[N, K]`; K ≤ 131071 cannot overflow.""",
    )
)

define(
    Op(
        schema="int8_mm_dequant(Tensor A, Tensor row_stats, Tensor col_stats, ScalarType? dtype=None, "
        "Tensor? bias=None) -> Tensor",
        check=_check_mm_dequant,
        results=_mm_dequant_results,
        cases=inputs.mm_dequant_cases,
        bad_cases=inputs.bad_mm_dequant,
        tolerance=SCALED,
        doc="""An int32 product in real units: `A * row_stats * col_stats * 6.200124e-5 + bias`, fp32, rounded once.

        The constant is the public package's for `1 / 127²`, 1.8e-5 too large, kept so that results agree with it.

        A: int32 `[..., N]`. row_stats, col_stats: fp32, the absmax of each row of both factors. dtype: None means fp16.
        """,
    )
)

define(
    Op(
        schema="int8_scaled_mm(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, Tensor? bias=None, "
        "ScalarType? dtype=None) -> Tensor",
        check=_check_scaled,
        results=_scaled_results,
        cases=inputs.scaled_cases,
        bad_cases=inputs.bad_scaled,
        tolerance=SCALED,
        doc="""`int8_mm` of A `[..., K]` and B `[N, K]`, then `int8_mm_dequant`: row_stats, col_stats, bias, dtype.""",
    )
)

define(
    Op(
        schema="int8_mixed_scaled_mm(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, "
        "Tensor? outlier_cols=None, Tensor? bias=None) -> (Tensor out, Tensor? subA)",
        check=_check_mixed,
        results=_mixed_results,
        cases=inputs.mixed_cases,
        bad_cases=inputs.bad_mixed,
        tolerance=PRODUCT,
        doc="""The int8 product plus the product of the outlier columns in A's dtype, accumulated in fp32.

        The int8 part and the outlier columns' weight are rounded to A's dtype, as in the public package, then the sum
        is.

        A: `[..., K]`. CA, SCA: A quantized by rows. CB `[N, K]`, SCB `[N]`: the quantized weight. outlier_cols: int64.
        bias: `[N]`. subA: `A[:, outlier_cols]`, or an empty tensor of shape (0,) where there are none: its rank depends
        on that, as in the public package. What is to compile for any number of outliers takes `int8_linear`.
        """,
    )
)

define(
    Op(
        schema="int8_linear(Tensor A, Tensor CB, Tensor SCB, Tensor? bias=None, float threshold=0.0) -> Tensor",
        check=_check_linear,
        results=_linear_results,
        cases=inputs.linear_cases,
        bad_cases=inputs.bad_linear,
        tolerance=PRODUCT,
        doc="""A linear layer with an int8 weight: quantize A by rows, multiply, add outliers and bias, in one call.

        A: `[..., K]`. CB: int8 `[N, K]`, SCB: fp32 `[N]`, the row-wise quantized weight. Result: `[..., N]` in A's
        dtype. No shape depends on data, so that it compiles at any threshold.
        """,
    )
)
