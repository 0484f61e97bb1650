"""LLM.int8(): row-wise quantization, exact int8 products, outliers in the activations' dtype (arXiv:2208.07339)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..cases import FLOATS, BadCase, Case, Maker
from ..checks import Check, product
from ..op import Op, Result, define
from ..tolerance import EXACT, Tolerance

# 131071 products of 128 * 128 are the most that int32 holds.
LARGEST_K = 131071

SCALED = Tolerance({torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3})
PRODUCT = Tolerance({torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2})

_quant = Check("int8_vectorwise_quant")
_mask = Check("int8_vectorwise_quant_mask")
_dequant = Check("int8_vectorwise_dequant")
_double = Check("int8_double_quant")
_mm = Check("int8_mm")
_mm_dequant = Check("int8_mm_dequant")
_scaled = Check("int8_scaled_mm")
_mixed = Check("int8_mixed_scaled_mm")
_linear = Check("int8_linear")


def _rows(A: Tensor) -> Any:
    return product(A.shape[:-1])


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
    return Result(A.shape, torch.int8), Result((_rows(A),), torch.float32), outliers


def _check_mask(A: Tensor, threshold: float) -> None:
    _check_activations(_mask, A, threshold)


def _mask_results(A: Tensor, threshold: float) -> tuple[Result, ...]:
    return (
        Result(A.shape, torch.int8),
        Result((_rows(A),), torch.float32),
        Result((A.shape[-1],), torch.bool),
    )


def _check_dequant(A: Tensor, stats: Tensor) -> None:
    _dequant.dtype("A", A, (torch.int8,))
    _dequant.at_least_1d("A", A)
    _check_stats(_dequant, "stats", stats, _rows(A), lambda: f"A of shape {tuple(A.shape)}")
    _dequant.one_device(A, stats=stats)


def _dequant_results(A: Tensor, stats: Tensor) -> tuple[Result]:
    return (Result(A.shape, torch.float32),)


def _check_double(A: Tensor, threshold: float = 0.0) -> None:
    _check_activations(_double, A, threshold)


def _double_results(A: Tensor, threshold: float = 0.0) -> tuple[Result | None, ...]:
    codes, columns = Result(A.shape, torch.int8), Result((A.shape[-1],), torch.float32)
    outliers = Result((None,), torch.int64) if threshold > 0 else None
    return codes, codes, Result((_rows(A),), torch.float32), columns, outliers


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
    _check_stats(_mm_dequant, "row_stats", row_stats, _rows(A), lambda: f"A of shape {tuple(A.shape)}")
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
    _check_stats(_scaled, "row_stats", row_stats, _rows(A), lambda: f"A of shape {tuple(A.shape)}")
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
    _check_stats(_mixed, "SCA", SCA, _rows(CA), lambda: f"CA of shape {tuple(CA.shape)}")
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
    columns = (0,) if none else (_rows(A), outliers)
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


# -- cases ---------------------------------------------------------------------------------------------------------


def _activations(make: Maker, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, with two columns that hold outliers where there is room for them."""
    A = make.normal(*shape, dtype=dtype)
    if A.numel() > 4 and shape[-1] > 3:
        A.view(-1, shape[-1])[0, 1] = 9
        A.view(-1, shape[-1])[-1, 3] = -20
    return A


def _activation_cases(make: Maker, thresholds: tuple[float, ...]) -> Iterator[Case]:
    shapes: list[tuple[int, ...]] = [(12, 72), (1, 64), (2, 3, 40), (5,), (0, 8), (3, 0)]
    if make.full:
        shapes += [(17, 1000), (64, 4096), (1, 1)]
    for dtype in FLOATS:
        for threshold in thresholds:
            for shape in shapes:
                yield Case(
                    f"{dtype} {list(shape)} threshold {threshold}", (_activations(make, *shape, dtype=dtype), threshold)
                )
    for threshold in thresholds:
        A = _activations(make, 6, 40)
        A[2] = 0
        yield Case(f"zero row threshold {threshold}", (A, threshold))
        A = _activations(make, 6, 40)
        A[1, 5], A[2, 6], A[3, 7] = torch.nan, torch.inf, -torch.inf
        yield Case(f"NaN and Inf threshold {threshold}", (A, threshold))
        yield Case(f"strided threshold {threshold}", (make.strided(_activations(make, 6, 40)), threshold))
    yield Case("ties to even", (make.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0]]), thresholds[0]))
    yield Case("no outlier", (make.normal(4, 32), 100.0))


def _products(make: Maker) -> Iterator[tuple[str, Tensor, Tensor]]:
    shapes: list[tuple[tuple[int, ...], int]] = [((12, 72), 40), ((1, 64), 5), ((2, 3, 33), 7), ((9,), 4)]
    shapes += [((0, 8), 3), ((3, 8), 0), ((3, 0), 4), ((2, 3000), 3)]
    if make.full:
        shapes += [((64, 4096), 33), ((2, LARGEST_K), 2)]
    for shape, columns in shapes:
        yield f"{list(shape)} x {columns}", make.int8(*shape), make.int8(columns, shape[-1])
    yield (
        "extremes",
        torch.full((2, 2048), -128, dtype=torch.int8, device=make.device),
        torch.full((2, 2048), -128, dtype=torch.int8, device=make.device),
    )
    yield "strided", make.strided(make.int8(4, 24)), make.int8(24, 6).t()


def _mm_cases(make: Maker) -> Iterator[Case]:
    for name, A, B in _products(make):
        yield Case(name, (A, B))


def _dequant_cases(make: Maker) -> Iterator[Case]:
    for shape in ((4, 33), (2, 3, 8), (0, 8), (7,)):
        A = make.int8(*shape)
        yield Case(f"{list(shape)}", (A, make.positive(int(_rows(A)))))
    yield Case("strided", (make.strided(make.int8(4, 33)), make.strided(make.positive(4))))
    yield Case("NaN row", (make.int8(3, 8), make.tensor([1.0, torch.nan, 0.0])))


def _mm_dequant_cases(make: Maker) -> Iterator[Case]:
    for dtype in (None, *FLOATS):
        for shape in ((12, 40), (2, 3, 8), (0, 8), (3, 0), (5,)):
            A = make.integers(*shape, low=-(10**6), high=10**6, dtype=torch.int32)
            stats = make.positive(int(_rows(A))), make.positive(shape[-1])
            yield Case(f"{dtype} {list(shape)}", (A, *stats, dtype))
            yield Case(
                f"{dtype} {list(shape)} bias", (A, *stats, dtype, make.normal(shape[-1], dtype=dtype or torch.float16))
            )
    A = make.strided(make.integers(6, 9, low=-99, high=99, dtype=torch.int32))
    yield Case("strided", (A, make.positive(6), make.positive(9), torch.float32, make.normal(9)))


def _scaled_cases(make: Maker) -> Iterator[Case]:
    for name, A, B in _products(make):
        stats = make.positive(int(_rows(A))), make.positive(B.shape[0])
        yield Case(name, (A, B, *stats))
        for dtype in FLOATS:
            yield Case(f"{dtype} {name}", (A, B, *stats, make.normal(B.shape[0], dtype=dtype), dtype))


def _mixed_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for shape, columns in (((12, 72), 40), ((2, 3, 33), 7), ((1, 64), 5), ((0, 8), 3)):
            A, CB = make.normal(*shape, dtype=dtype), make.int8(columns, shape[-1])
            args = (A, make.int8(*shape), CB, make.positive(int(_rows(A))), make.positive(columns))
            yield Case(f"{dtype} {list(shape)} none", args)
            bias = make.normal(columns, dtype=dtype)
            for outliers in ([], [3], [0, 5, 7]):
                cols = make.tensor(outliers, torch.int64)
                yield Case(f"{dtype} {list(shape)} outliers {outliers}", (*args, cols, bias))


def _linear_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for threshold in (0.0, 6.0):
            for shape, columns in (((12, 72), 40), ((2, 3, 33), 7), ((1, 64), 5), ((9,), 4), ((0, 8), 3), ((3, 0), 4)):
                A = _activations(make, *shape, dtype=dtype)
                args = (A, make.int8(columns, shape[-1]), make.positive(columns))
                yield Case(f"{dtype} {list(shape)} threshold {threshold}", (*args, None, threshold))
                bias = make.normal(columns, dtype=dtype)
                yield Case(f"{dtype} {list(shape)} threshold {threshold} bias", (*args, bias, threshold))
    A = make.strided(_activations(make, 6, 40))
    yield Case("strided", (A, make.int8(40, 8).t(), make.positive(8), make.normal(8), 6.0))


def _bad_activations(make: Maker) -> Iterator[BadCase]:
    yield BadCase("A dtype", (make.normal(3, 8).double(), 0.5), "A is float64, expected float32, float16 or bfloat16")
    yield BadCase("A int8", (make.int8(3, 8), 0.5), "A is int8, expected float32")
    yield BadCase("A scalar", (make.tensor(1.0), 0.5), "A is a scalar, expected at least 1 dimension")
    yield BadCase("threshold", (make.normal(3, 8), -1.0), "threshold is -1.0, expected at least 0")
    yield BadCase("NaN threshold", (make.normal(3, 8), float("nan")), "threshold is nan, expected at least 0")


def _bad_dequant(make: Maker) -> Iterator[BadCase]:
    A = make.int8(3, 8)
    yield BadCase("A dtype", (A.int(), make.positive(3)), "A is int32, expected int8")
    yield BadCase("A scalar", (make.tensor(1, torch.int8), make.positive(1)), "A is a scalar")
    yield BadCase("stats", (A, make.positive(8)), r"stats has 8 elements, but A of shape \(3, 8\) needs 3")
    yield BadCase("stats dtype", (A, make.positive(3).half()), "stats is float16, expected float32")
    yield BadCase("device", (A, make.positive(3).to("meta")), "is on .*, expected .* as the other tensors")


def _changer(good: dict[str, Any]) -> Callable[..., tuple[Any, ...]]:
    return lambda **changed: tuple((good | changed).values())


def _bad_product(make: Maker, args: Callable[..., tuple[Any, ...]], a: str = "A", b: str = "B") -> Iterator[BadCase]:
    """What every product of A `[3, 16]` and B `[5, 16]` refuses."""
    yield BadCase(f"{b} dtype", args(**{b: make.bytes(5, 16)}), f"{b} is uint8, expected int8")
    yield BadCase(f"{b} dims", args(**{b: make.int8(16)}), f"{b} has 1 dimensions, expected 2")
    yield BadCase("widths", args(**{b: make.int8(5, 15)}), rf"{a} has shape \(3, 16\), expected 15 as its last size")
    yield BadCase("device", args(**{b: make.int8(5, 16).to("meta")}), "is on .*, expected .* as the other tensors")


def _bad_mm(make: Maker) -> Iterator[BadCase]:
    args = _changer({"A": make.int8(3, 16), "B": make.int8(5, 16)})
    yield from _bad_product(make, args)
    yield BadCase("A dtype", args(A=make.normal(3, 16)), "A is float32, expected int8")
    wide = make.int8(1, LARGEST_K + 1)
    yield BadCase("overflow", args(A=wide, B=wide), "B has 131072 columns, expected at most 131071")


def _bad_mm_dequant(make: Maker) -> Iterator[BadCase]:
    A = make.integers(3, 5, low=-99, high=99, dtype=torch.int32)
    args = _changer(
        {"A": A, "row_stats": make.positive(3), "col_stats": make.positive(5), "dtype": torch.float32, "bias": None}
    )
    yield BadCase("A dtype", args(A=A.long()), "A is int64, expected int32")
    yield BadCase("A scalar", args(A=A[0, 0]), "A is a scalar")
    yield BadCase("row_stats", args(row_stats=make.positive(5)), "row_stats has 5 elements, but .* needs 3")
    yield BadCase("col_stats", args(col_stats=make.positive(3)), "col_stats has 3 elements, but .* needs 5")
    yield BadCase("stats dtype", args(col_stats=make.bytes(5)), "col_stats is uint8, expected float32")
    yield BadCase("dtype", args(dtype=torch.int32), "dtype is int32, expected float32")
    yield BadCase("bias", args(bias=make.normal(3)), r"bias has shape \(3,\), expected \(5,\)")
    yield BadCase("bias dtype", args(bias=make.int8(5)), "bias is int8, expected float32")
    yield BadCase("device", args(row_stats=make.positive(3).to("meta")), "is on .*, expected .* as the other tensors")


def _bad_scaled(make: Maker) -> Iterator[BadCase]:
    args = _changer(
        {"A": make.int8(3, 16), "B": make.int8(5, 16), "row_stats": make.positive(3), "col_stats": make.positive(5)}
        | {"bias": None, "dtype": torch.bfloat16}
    )
    yield from _bad_product(make, args)
    yield BadCase("row_stats", args(row_stats=make.positive(5)), "row_stats has 5 elements, but .* needs 3")
    yield BadCase("col_stats", args(col_stats=make.positive(4)), "col_stats has 4 elements, but .* needs 5")
    yield BadCase("bias", args(bias=make.normal(1, 5)), r"bias has shape \(1, 5\), expected \(5,\)")
    yield BadCase("dtype", args(dtype=torch.float64), "dtype is float64, expected float32")


def _bad_mixed(make: Maker) -> Iterator[BadCase]:
    args = _changer(
        {"A": make.normal(3, 16), "CA": make.int8(3, 16), "CB": make.int8(5, 16), "SCA": make.positive(3)}
        | {"SCB": make.positive(5), "outlier_cols": None, "bias": None}
    )
    yield from _bad_product(make, args, "CA", "CB")
    yield BadCase("A dtype", args(A=make.int8(3, 16)), "A is int8, expected float32")
    yield BadCase("A shape", args(A=make.normal(4, 16)), r"A has shape \(4, 16\), expected \(3, 16\)")
    yield BadCase("SCA", args(SCA=make.positive(4)), "SCA has 4 elements, but .* needs 3")
    yield BadCase("SCB", args(SCB=make.positive(3)), "SCB has 3 elements, but .* needs 5")
    yield BadCase("outliers", args(outlier_cols=make.tensor([1], torch.int32)), "outlier_cols is int32, expected int64")
    yield BadCase("outlier dims", args(outlier_cols=make.tensor([[1]], torch.int64)), "outlier_cols has 2 dimensions")
    yield BadCase("bias", args(bias=make.normal(3)), r"bias has shape \(3,\), expected \(5,\)")


def _bad_linear(make: Maker) -> Iterator[BadCase]:
    args = _changer(
        {"A": make.normal(3, 16), "CB": make.int8(5, 16), "SCB": make.positive(5), "bias": None, "threshold": 6.0}
    )
    yield from _bad_product(make, args, "A", "CB")
    yield BadCase("A dtype", args(A=make.normal(3, 16).double()), "A is float64, expected float32")
    yield BadCase("A scalar", args(A=make.tensor(1.0)), "A is a scalar")
    yield BadCase("SCB", args(SCB=make.positive(3)), "SCB has 3 elements, but .* needs 5")
    yield BadCase("SCB dtype", args(SCB=make.positive(5).half()), "SCB is float16, expected float32")
    yield BadCase("bias", args(bias=make.normal(3)), r"bias has shape \(3,\), expected \(5,\)")
    yield BadCase("threshold", args(threshold=-0.5), "threshold is -0.5, expected at least 0")


define(
    Op(
        schema="int8_vectorwise_quant(Tensor A, float threshold=0.0)"
        " -> (Tensor q, Tensor row_absmax, Tensor? outlier_cols)",
        check=_check_quant,
        results=_quant_results,
        cases=lambda make: _activation_cases(make, (0.0, 3.0, 6.0)),
        bad_cases=_bad_activations,
        tolerance=EXACT,
        doc="""Quantizes each row to int8 by its largest magnitude: `round(A * (127 / row_absmax))`, ties to even.

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
        cases=lambda make: _activation_cases(make, (0.0, 3.0, 6.0)),
        bad_cases=_bad_activations,
        tolerance=EXACT,
        doc="""`int8_vectorwise_quant` with the outlier columns as a mask `[K]`, so that no shape depends on data.""",
    )
)

define(
    Op(
        schema="int8_vectorwise_dequant(Tensor A, Tensor stats) -> Tensor",
        check=_check_dequant,
        results=_dequant_results,
        cases=_dequant_cases,
        bad_cases=_bad_dequant,
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
        cases=lambda make: _activation_cases(make, (0.0, 6.0)),
        bad_cases=_bad_activations,
        tolerance=EXACT,
        doc="""Quantizes to int8 by rows and by columns; outliers as in `int8_vectorwise_quant`.

        q_row, q_col: int8 like A. row_absmax: fp32 `[rows]`. col_absmax: fp32 `[K]`.
        """,
    )
)

define(
    Op(
        schema="int8_mm(Tensor A, Tensor B) -> Tensor",
        check=_check_mm,
        results=_mm_results,
        cases=_mm_cases,
        bad_cases=_bad_mm,
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
        cases=_mm_dequant_cases,
        bad_cases=_bad_mm_dequant,
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
        cases=_scaled_cases,
        bad_cases=_bad_scaled,
        tolerance=SCALED,
        doc="""`int8_mm`, then `int8_mm_dequant`. A: int8 `[..., K]`. B: int8 `[N, K]`. dtype: None means fp16.""",
    )
)

define(
    Op(
        schema="int8_mixed_scaled_mm(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB, "
        "Tensor? outlier_cols=None, Tensor? bias=None) -> (Tensor out, Tensor? subA)",
        check=_check_mixed,
        results=_mixed_results,
        cases=_mixed_cases,
        bad_cases=_bad_mixed,
        tolerance=PRODUCT,
        doc="""The int8 product plus the product of the outlier columns in A's dtype, accumulated in fp32.

        The int8 part and the outlier columns' weight are rounded to A's dtype, as in the public package, then the sum
        is.

        A: `[..., K]`. CA, SCA: A quantized by rows. CB `[N, K]`, SCB `[N]`: the quantized weight. outlier_cols: int64.
        subA: `A[:, outlier_cols]`, or an empty tensor of shape (0,) where there are none.
        """,
    )
)

define(
    Op(
        schema="int8_linear(Tensor A, Tensor CB, Tensor SCB, Tensor? bias=None, float threshold=0.0) -> Tensor",
        check=_check_linear,
        results=_linear_results,
        cases=_linear_cases,
        bad_cases=_bad_linear,
        tolerance=PRODUCT,
        doc="""A linear layer with an int8 weight: quantize A by rows, multiply, add outliers and bias, in one call.

        A: `[..., K]`. CB: int8 `[N, K]`, SCB: fp32 `[N]`, the row-wise quantized weight. Result: `[..., N]` in A's
        dtype. No shape depends on data, so that it compiles at any threshold.
        """,
    )
)
