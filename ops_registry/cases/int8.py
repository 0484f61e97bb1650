"""Inputs of the int8 operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..checks import row_count
from ..formats import FLOATS, LARGEST_K
from .maker import BadCase, Case, Maker, changer


def _activations(make: Maker, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, with two columns that hold outliers where there is room for them."""
    A = make.normal(*shape, dtype=dtype)
    if A.numel() > 4 and shape[-1] > 3:
        A.view(-1, shape[-1])[0, 1] = 9
        A.view(-1, shape[-1])[-1, 3] = -20
    return A


def activation_cases(make: Maker, thresholds: tuple[float, ...]) -> Iterator[Case]:
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
        for dtype in FLOATS:
            A = _activations(make, 6, 40, dtype=dtype)
            A[1, 5], A[2, 6], A[3] = torch.nan, -torch.inf, A[3] * 1e-41
            A[4, 7], A[4, 8] = threshold, -threshold
            yield Case(f"{dtype} NaN, Inf, tiny row and values of threshold {threshold}", (A, threshold))
    yield Case("many", (make.normal(130, 72), thresholds[0]))
    yield Case("ties to even", (make.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0]]), thresholds[0]))
    yield Case("no outlier", (make.normal(4, 32), 100.0))


def _products(make: Maker) -> Iterator[tuple[str, Tensor, Tensor]]:
    shapes: list[tuple[tuple[int, ...], int]] = [((12, 72), 40), ((1, 64), 5), ((2, 3, 33), 7), ((9,), 4)]
    shapes += [((0, 8), 3), ((3, 8), 0), ((3, 0), 4), ((2, 3000), 3), ((130, 200), 72)]
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
    # Sums beyond 2^24, which fp32 does not hold.
    A, B = (make.integers(n, 2049, low=100, high=128, dtype=torch.int8) for n in (40, 300))
    yield "large sums", A, B


def mm_cases(make: Maker) -> Iterator[Case]:
    for name, A, B in _products(make):
        yield Case(name, (A, B))


def dequant_cases(make: Maker) -> Iterator[Case]:
    for shape in ((4, 33), (2, 3, 8), (0, 8), (7,)):
        A = make.int8(*shape)
        yield Case(f"{list(shape)}", (A, make.positive(int(row_count(A)))))
    yield Case("strided", (make.strided(make.int8(4, 33)), make.strided(make.positive(4))))
    yield Case("NaN row", (make.int8(3, 8), make.tensor([1.0, torch.nan, 0.0])))


def mm_dequant_cases(make: Maker) -> Iterator[Case]:
    for dtype in (None, *FLOATS):
        for shape in ((12, 40), (2, 3, 8), (0, 8), (3, 0), (5,)):
            A = make.integers(*shape, low=-(10**6), high=10**6, dtype=torch.int32)
            stats = make.positive(int(row_count(A))), make.positive(shape[-1])
            yield Case(f"{dtype} {list(shape)}", (A, *stats, dtype))
            yield Case(
                f"{dtype} {list(shape)} bias", (A, *stats, dtype, make.normal(shape[-1], dtype=dtype or torch.float16))
            )
    A = make.integers(130, 72, low=-(10**6), high=10**6, dtype=torch.int32)
    for dtype in FLOATS:
        rows, columns = make.positive(130), make.positive(72)
        rows[1], rows[2], columns[3], columns[4] = torch.nan, torch.inf, torch.nan, 3e4
        yield Case(f"{dtype} NaN, Inf and huge scales", (A, rows, columns, dtype))
    args = (A, make.positive(130), make.positive(72), torch.bfloat16, make.normal(72))
    yield Case("fp32 bias on bf16", args)
    A = make.strided(make.integers(6, 9, low=-99, high=99, dtype=torch.int32))
    yield Case("strided", (A, make.positive(6), make.positive(9), torch.float32, make.normal(9)))


def scaled_cases(make: Maker) -> Iterator[Case]:
    for name, A, B in _products(make):
        stats = make.positive(int(row_count(A))), make.positive(B.shape[0])
        yield Case(name, (A, B, *stats))
        for dtype in FLOATS:
            yield Case(f"{dtype} {name}", (A, B, *stats, make.normal(B.shape[0], dtype=dtype), dtype))
    rows, columns = make.tensor([1.0, torch.nan, 0.0]), make.tensor([0.5, torch.nan, torch.inf, 3e4])
    args = (make.int8(3, 40), make.int8(4, 40), rows, columns, make.normal(4), torch.bfloat16)
    yield Case("NaN, Inf and huge scales, fp32 bias on bf16", args)


def mixed_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for shape, columns in (((12, 72), 40), ((2, 3, 33), 7), ((1, 64), 5), ((0, 8), 3)):
            A, CB = make.normal(*shape, dtype=dtype), make.int8(columns, shape[-1])
            args = (A, make.int8(*shape), CB, make.positive(int(row_count(A))), make.positive(columns))
            yield Case(f"{dtype} {list(shape)} none", args)
            bias = make.normal(columns, dtype=dtype)
            for outliers in ([], [3], [0, 5, 7]):
                cols = make.tensor(outliers, torch.int64)
                yield Case(f"{dtype} {list(shape)} outliers {outliers}", (*args, cols, bias))
    A, CA, CB = make.normal(40, 1100, dtype=torch.bfloat16), make.int8(40, 1100), make.int8(72, 1100)
    SCA, SCB = make.positive(40), make.positive(72)
    yield Case("larger, fp32 bias on bf16", (A, CA, CB, SCA, SCB, make.tensor([3, 1090], torch.int64), make.normal(72)))
    SCA[1], SCB[2] = torch.nan, torch.nan
    yield Case("NaN scales", (A, CA, CB, SCA, SCB))


def linear_cases(make: Maker) -> Iterator[Case]:
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
    A, SCB = make.normal(40, 1100, dtype=torch.bfloat16), make.positive(72)
    yield Case("larger, fp32 bias on bf16", (A, make.int8(72, 1100), SCB, make.normal(72), 3.0))
    A, SCB = make.normal(6, 40), make.positive(7)
    A[1, 5], A[2, 6], A[3, 7], SCB[2] = torch.nan, torch.inf, 6.0, torch.nan
    for threshold in (0.0, 6.0):
        yield Case(f"NaN and Inf threshold {threshold}", (A, make.int8(7, 40), SCB, None, threshold))


def bad_activations(make: Maker) -> Iterator[BadCase]:
    yield BadCase("A dtype", (make.normal(3, 8).double(), 0.5), "A is float64, expected float32, float16 or bfloat16")
    yield BadCase("A int8", (make.int8(3, 8), 0.5), "A is int8, expected float32")
    yield BadCase("A scalar", (make.tensor(1.0), 0.5), "A is a scalar, expected at least 1 dimension")
    yield BadCase("threshold", (make.normal(3, 8), -1.0), "threshold is -1.0, expected at least 0")
    yield BadCase("NaN threshold", (make.normal(3, 8), float("nan")), "threshold is nan, expected at least 0")


def bad_dequant(make: Maker) -> Iterator[BadCase]:
    A = make.int8(3, 8)
    yield BadCase("A dtype", (A.int(), make.positive(3)), "A is int32, expected int8")
    yield BadCase("A scalar", (make.tensor(1, torch.int8), make.positive(1)), "A is a scalar")
    yield BadCase("stats", (A, make.positive(8)), r"stats has 8 elements, but A of shape \(3, 8\) needs 3")
    yield BadCase("stats dtype", (A, make.positive(3).half()), "stats is float16, expected float32")
    yield BadCase("device", (A, make.positive(3).to("meta")), "is on .*, expected .* as the other tensors")


def _bad_product(make: Maker, args: Callable[..., tuple[Any, ...]], a: str = "A", b: str = "B") -> Iterator[BadCase]:
    """What every product of A `[3, 16]` and B `[5, 16]` refuses."""
    yield BadCase(f"{b} dtype", args(**{b: make.bytes(5, 16)}), f"{b} is uint8, expected int8")
    yield BadCase(f"{b} dims", args(**{b: make.int8(16)}), f"{b} has 1 dimensions, expected 2")
    yield BadCase("widths", args(**{b: make.int8(5, 15)}), rf"{a} has shape \(3, 16\), expected 15 as its last size")
    yield BadCase("device", args(**{b: make.int8(5, 16).to("meta")}), "is on .*, expected .* as the other tensors")
    wide = make.int8(1, LARGEST_K + 1)
    wide_a = make.normal(*wide.shape) if (a, b) == ("A", "CB") else wide
    yield BadCase("overflow", args(**{a: wide_a, b: wide}), f"{b} has 131072 columns, expected at most 131071")


def _bad_codes(make: Maker, args: Callable[..., tuple[Any, ...]], a: str) -> Iterator[BadCase]:
    """What a product of int8 `a` refuses."""
    yield BadCase(f"{a} dtype", args(**{a: make.normal(3, 16)}), f"{a} is float32, expected int8")
    yield BadCase(f"{a} scalar", args(**{a: make.tensor(1, torch.int8)}), f"{a} is a scalar, expected at least")


def bad_mm(make: Maker) -> Iterator[BadCase]:
    args = changer({"A": make.int8(3, 16), "B": make.int8(5, 16)})
    yield from _bad_product(make, args)
    yield from _bad_codes(make, args, "A")


def bad_mm_dequant(make: Maker) -> Iterator[BadCase]:
    A = make.integers(3, 5, low=-99, high=99, dtype=torch.int32)
    args = changer(
        {"A": A, "row_stats": make.positive(3), "col_stats": make.positive(5), "dtype": torch.float32, "bias": None}
    )
    yield BadCase("A dtype", args(A=A.long()), "A is int64, expected int32")
    yield BadCase("A scalar", args(A=A[0, 0]), "A is a scalar")
    yield BadCase("row_stats", args(row_stats=make.positive(5)), "row_stats has 5 elements, but .* needs 3")
    yield BadCase("col_stats", args(col_stats=make.positive(3)), "col_stats has 3 elements, but .* needs 5")
    yield BadCase("stats dtype", args(col_stats=make.bytes(5)), "col_stats is uint8, expected float32")
    yield BadCase("row_stats dtype", args(row_stats=make.bytes(3)), "row_stats is uint8, expected float32")
    yield BadCase("dtype", args(dtype=torch.int32), "dtype is int32, expected float32")
    yield BadCase("bias", args(bias=make.normal(3)), r"bias has shape \(3,\), expected \(5,\)")
    yield BadCase("bias dtype", args(bias=make.int8(5)), "bias is int8, expected float32")
    yield BadCase("device", args(row_stats=make.positive(3).to("meta")), "is on .*, expected .* as the other tensors")


def bad_scaled(make: Maker) -> Iterator[BadCase]:
    args = changer(
        {"A": make.int8(3, 16), "B": make.int8(5, 16), "row_stats": make.positive(3), "col_stats": make.positive(5)}
        | {"bias": None, "dtype": torch.bfloat16}
    )
    yield from _bad_product(make, args)
    yield from _bad_codes(make, args, "A")
    yield BadCase("row_stats dtype", args(row_stats=make.bytes(3)), "row_stats is uint8, expected float32")
    yield BadCase("col_stats dtype", args(col_stats=make.bytes(5)), "col_stats is uint8, expected float32")
    yield BadCase("bias dtype", args(bias=make.int8(5)), "bias is int8, expected float32")
    yield BadCase("row_stats", args(row_stats=make.positive(5)), "row_stats has 5 elements, but .* needs 3")
    yield BadCase("col_stats", args(col_stats=make.positive(4)), "col_stats has 4 elements, but .* needs 5")
    yield BadCase("bias", args(bias=make.normal(1, 5)), r"bias has shape \(1, 5\), expected \(5,\)")
    yield BadCase("dtype", args(dtype=torch.float64), "dtype is float64, expected float32")


def bad_mixed(make: Maker) -> Iterator[BadCase]:
    args = changer(
        {"A": make.normal(3, 16), "CA": make.int8(3, 16), "CB": make.int8(5, 16), "SCA": make.positive(3)}
        | {"SCB": make.positive(5), "outlier_cols": None, "bias": None}
    )
    yield from _bad_product(make, args, "CA", "CB")
    yield from _bad_codes(make, args, "CA")
    yield BadCase("SCA dtype", args(SCA=make.bytes(3)), "SCA is uint8, expected float32")
    yield BadCase("SCB dtype", args(SCB=make.bytes(5)), "SCB is uint8, expected float32")
    yield BadCase("bias dtype", args(bias=make.int8(5)), "bias is int8, expected float32")
    yield BadCase("A dtype", args(A=make.int8(3, 16)), "A is int8, expected float32")
    yield BadCase("A shape", args(A=make.normal(4, 16)), r"A has shape \(4, 16\), expected \(3, 16\)")
    yield BadCase("SCA", args(SCA=make.positive(4)), "SCA has 4 elements, but .* needs 3")
    yield BadCase("SCB", args(SCB=make.positive(3)), "SCB has 3 elements, but .* needs 5")
    yield BadCase("outliers", args(outlier_cols=make.tensor([1], torch.int32)), "outlier_cols is int32, expected int64")
    yield BadCase("outlier dims", args(outlier_cols=make.tensor([[1]], torch.int64)), "outlier_cols has 2 dimensions")
    yield BadCase("bias", args(bias=make.normal(3)), r"bias has shape \(3,\), expected \(5,\)")


def bad_linear(make: Maker) -> Iterator[BadCase]:
    args = changer(
        {"A": make.normal(3, 16), "CB": make.int8(5, 16), "SCB": make.positive(5), "bias": None, "threshold": 6.0}
    )
    yield from _bad_product(make, args, "A", "CB")
    yield BadCase("A dtype", args(A=make.normal(3, 16).double()), "A is float64, expected float32")
    yield BadCase("A scalar", args(A=make.tensor(1.0)), "A is a scalar")
    yield BadCase("SCB", args(SCB=make.positive(3)), "SCB has 3 elements, but .* needs 5")
    yield BadCase("SCB dtype", args(SCB=make.positive(5).half()), "SCB is float16, expected float32")
    yield BadCase("bias", args(bias=make.normal(3)), r"bias has shape \(3,\), expected \(5,\)")
    yield BadCase("bias dtype", args(bias=make.int8(5)), "bias is int8, expected float32")
    yield BadCase("threshold", args(threshold=-0.5), "threshold is -0.5, expected at least 0")
