"""LLM.int8(): activations and weights in int8 with a scale per row, outlier columns kept aside (arXiv:2208.07339)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_core.ops_registry.checks import row_count
from bnb_core.ops_registry.precision import fp32_product

from .launch import next_power, on_device, positions, rounded, share
from .tiles import architecture, tile

INFINITE = tl.constexpr(0x7F800000)  # the bits of fp32's infinity; those of NaN are above
# From here up 1 / absmax * 127 does not overflow.
SMALLEST_INVERTED = tl.constexpr(2.0**-120)
# Stands for 1 / 127**2: the public package's number, 2e-5 more.
PRODUCT_SCALE = tl.constexpr(6.200124e-05)


def why_not_int8_mm(A: Tensor, *_: Any) -> str | None:
    """Triton compiles them for no NVIDIA GPU before Ampere."""
    arch = architecture(A.device)
    old = arch.startswith("sm_") and int(arch.removeprefix("sm_")) < 80
    return f"products of int8 need sm_80 or later, got {arch}" if old else None


why_not_int8_scaled_mm = why_not_int8_mixed_scaled_mm = why_not_int8_linear = why_not_int8_mm


def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes like A, absmax per row, and with a threshold the columns (int64) that hold an outlier."""
    q, absmax, outliers = int8_vectorwise_quant_mask(A, threshold)
    return q, absmax, _numbers(outliers, threshold)


def int8_vectorwise_quant_mask(A: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Codes like A, absmax per row, and a mask [K] of the columns that hold an outlier."""
    outliers = torch.zeros(A.shape[-1], dtype=torch.bool, device=A.device)
    q, absmax = _quantized(A.contiguous(), threshold, outliers)
    return _cleared(q, outliers, threshold), absmax, outliers


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """`A * stats / 127` of each row, in fp32."""
    result = torch.empty(A.shape, dtype=torch.float32, device=A.device)
    if n := A.numel():
        launch = tile("int8.dequantize", A.device)
        with on_device(A):
            _dequantize[(triton.cdiv(n, launch["SIZE"]),)](
                *(A.contiguous(), stats.contiguous(), result, n, A.shape[-1]), **launch
            )
    return result


def int8_double_quant(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Codes by row, codes by column, absmax of the rows, absmax of the columns, outlier columns."""
    A = A.contiguous()
    outliers = torch.zeros(A.shape[-1], dtype=torch.bool, device=A.device)
    by_row, row_absmax = _quantized(A, threshold, outliers)
    by_column, col_absmax = _quantized(A, threshold)
    by_row, by_column = (_cleared(q, outliers, threshold) for q in (by_row, by_column))
    return by_row, by_column, row_absmax, col_absmax, _numbers(outliers, threshold)


def int8_mm(A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
    """A [..., K] times the transpose of B [N, K], exact in int32."""
    result = _multiplied(A, B, torch.int32)
    return result if out is None else out.copy_(result)


def int8_mm_dequant(
    A: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    dtype: torch.dtype | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`A * row_stats * col_stats / 127**2 + bias` in fp32, rounded once to `dtype` (None: fp16)."""
    result = torch.empty(A.shape, dtype=dtype or torch.float16, device=A.device)
    if result.numel():
        M, N = row_count(A), A.shape[-1]
        launch = _fitted(tile("int8.scale", A.device), N)
        programs = triton.cdiv(M, launch["ROWS"]) * triton.cdiv(N, launch["COLUMNS"])
        args = (A.contiguous(), *_factors(result, row_stats, col_stats, bias), result)
        with on_device(A):
            _scale[(programs,)](*args, M, N, BIAS=bias is not None, **launch)
    return result


def int8_scaled_mm(
    A: Tensor,
    B: Tensor,
    row_stats: Tensor,
    col_stats: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`int8_mm` and `int8_mm_dequant` in one."""
    return _multiplied(A, B, dtype or torch.float16, (row_stats, col_stats, bias))


def int8_mixed_scaled_mm(
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    SCA: Tensor,
    SCB: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`int8_scaled_mm` of the codes plus the product of A's outlier columns with the dequantized weight.

    The parts meet in A's dtype: the int8 product and the weight of the outliers are rounded to it, then their sum is.
    """
    result = int8_scaled_mm(CA, CB, SCA, SCB, bias, A.dtype)
    if outlier_cols is None or not outlier_cols.numel():
        return result, torch.empty(0, dtype=A.dtype, device=A.device)
    outliers = _columns(A, outlier_cols)
    weight = int8_vectorwise_dequant(CB.index_select(1, outlier_cols), SCB).to(A.dtype)
    return _with_product(result, outliers, weight, A.dtype), outliers


def int8_linear(A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None = None, threshold: float = 0.0) -> Tensor:
    """A linear layer with the int8 weight CB: quantize A, multiply, add outliers and bias, round once."""
    CA, SCA, outlier_cols = int8_vectorwise_quant(A, threshold)
    if outlier_cols is None or not outlier_cols.numel():
        return int8_scaled_mm(CA, CB, SCA, SCB, bias, A.dtype)
    result = int8_scaled_mm(CA, CB, SCA, SCB, bias, torch.float32)
    weight = int8_vectorwise_dequant(CB.index_select(1, outlier_cols), SCB)
    return _with_product(result, _columns(A, outlier_cols), weight, A.dtype)


def _quantized(A: Tensor, threshold: float, outliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and absmax without outliers: by row, marking the columns that have some; or, with no mask, by column."""
    rows, width = row_count(A), A.shape[-1]
    by_row = outliers is not None
    count, length = (rows, width) if by_row else (width, rows)
    q = torch.empty(A.shape, dtype=torch.int8, device=A.device)
    absmax = torch.empty(count, dtype=torch.float32, device=A.device)
    if count:
        launch = tile("int8.quantize_rows" if by_row else "int8.quantize_columns", A.device)
        if by_row:
            launch = _fitted(launch, length)
        args = (A, q, absmax, q if outliers is None else outliers.view(torch.uint8), count, length)
        strides = (width, 1) if by_row else (1, width)
        with on_device(A):
            _quantize[(triton.cdiv(count, launch["ROWS"]),)](
                *args, *strides, threshold, OUTLIERS=threshold > 0, MARK=by_row, **launch
            )
    return q, absmax


def _fitted(launch: dict[str, int], width: int) -> dict[str, int]:
    """A tile of as many elements that is not wider than the rows are."""
    columns = min(next_power(width), launch["COLUMNS"])
    return launch | {"ROWS": launch["ROWS"] * launch["COLUMNS"] // columns, "COLUMNS": columns}


def _cleared(q: Tensor, outliers: Tensor, threshold: float) -> Tensor:
    return q.masked_fill_(outliers, 0) if threshold > 0 else q


def _numbers(outliers: Tensor, threshold: float) -> Tensor | None:
    return torch.nonzero(outliers).squeeze_(1) if threshold > 0 else None


def _columns(A: Tensor, columns: Tensor) -> Tensor:
    """Columns of A [..., K] as [rows, columns]."""
    return A.detach().reshape(row_count(A), A.shape[-1]).index_select(1, columns)


def _with_product(result: Tensor, outliers: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`result + outliers @ weight.T` in fp32, rounded to `dtype`; `result` is overwritten where it has that dtype."""
    product = fp32_product(outliers.float(), weight.float())
    product += result.view(product.shape)
    total = result if result.dtype == dtype else torch.empty_like(result, dtype=dtype)
    return total.copy_(product.view(total.shape))


def _factors(result: Tensor, row_stats: Tensor, col_stats: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    return row_stats.contiguous(), col_stats.contiguous(), result if bias is None else bias.contiguous()


def _multiplied(
    A: Tensor, B: Tensor, dtype: torch.dtype, factors: tuple[Tensor, Tensor, Tensor | None] | None = None
) -> Tensor:
    """The product of A and the transpose of B: int32, or scaled by the statistics of both, with a bias."""
    N, K = B.shape
    M = row_count(A)
    result = torch.empty(*A.shape[:-1], N, dtype=dtype, device=A.device)
    if result.numel():
        launch = tile("int8.multiply", A.device, M)
        grid = triton.cdiv(M, launch["ROWS"]) * triton.cdiv(N, launch["COLUMNS"])
        args = (result,) * 3 if factors is None else _factors(result, *factors)
        bias = factors is not None and factors[2] is not None
        with on_device(A):
            _multiply[(grid,)](
                A.contiguous(), B.contiguous(), *args, result, M, N, K, SCALED=factors is not None, BIAS=bias, **launch
            )
    return result


@triton.jit
def _tile(M, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows and columns of a program. Those of one column of tiles are neighbours and share a weight."""
    down = tl.cdiv(M, ROWS)
    row = (tl.program_id(0) % down).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) // down).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    return row, column


@triton.jit
def _to_even(t):
    """The nearest integer, the even one of two. No difference is taken, which a compiler might fuse with a product."""
    lower = tl.floor(t)
    whole = lower.to(tl.int32)
    middle = lower + 0.5
    return whole + ((t > middle) | ((t == middle) & (whole % 2 != 0))).to(tl.int32)


@triton.jit
def _load(A, row, column, count, length, across, along, threshold, OUTLIERS: tl.constexpr):
    """A tile in fp32 with zeros for outliers; where its elements are, which exist, and which are outliers."""
    element = (row * across)[:, None] + (column * along)[None, :]
    exist = (row < count)[:, None] & (column < length)[None, :]
    x = tl.load(A + element, mask=exist, other=0.0).to(tl.float32)
    outlier = tl.abs(x) >= threshold
    if OUTLIERS:
        x = tl.where(outlier, 0.0, x)
    return x, element, exist, outlier


@triton.jit
def _quantize(
    A, q, absmax, outliers, count, length, across, along, threshold,
    OUTLIERS: tl.constexpr, MARK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = positions(ROWS)
    largest = tl.zeros((ROWS,), tl.int32)  # the bits of magnitudes are in their order, NaN last
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        x, _, _, outlier = _load(A, row, column, count, length, across, along, threshold, OUTLIERS)
        if OUTLIERS and MARK:
            found = tl.max(outlier.to(tl.int32), 0)
            tl.store(outliers + column, found.to(tl.uint8), mask=(column < length) & (found > 0))
        largest = tl.maximum(largest, tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1))
    scale = tl.where(largest < INFINITE, largest.to(tl.float32, bitcast=True), float("nan"))
    tl.store(absmax + row, scale, mask=row < count)
    scales = ((largest > 0) & (largest < INFINITE))[:, None]
    divisor = tl.where(scales, scale[:, None], 1.0)
    inverse = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor) * 127.0
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        x, element, exist, _ = _load(A, row, column, count, length, across, along, threshold, OUTLIERS)
        t = tl.where(divisor >= SMALLEST_INVERTED, x * inverse, tl.div_rn(x, divisor) * 127.0)
        tl.store(q + element, _to_even(tl.where(scales, t, 0.0)).to(tl.int8), mask=exist)


@triton.jit
def _dequantize(A, stats, result, n, width, SIZE: tl.constexpr):
    first, count = share(n, SIZE)
    element = tl.arange(0, SIZE)
    exist = element < count
    x = tl.load(A + first + element, mask=exist, other=0).to(tl.float32)
    scale = tl.load(stats + (first + element) // width, mask=exist, other=0.0)
    tl.store(result + first + element, tl.div_rn(x * scale, tl.full(x.shape, 127.0, tl.float32)), mask=exist)


@triton.jit
def _scaled(total, row, column, row_stats, col_stats, bias, M, N, BIAS: tl.constexpr):
    """Sums of int8 products as the fp32 numbers that they stand for."""
    across = tl.load(row_stats + row, mask=row < M, other=0.0)[:, None]
    down = tl.load(col_stats + column, mask=column < N, other=0.0)[None, :]
    value = total.to(tl.float32) * across * (down * PRODUCT_SCALE)
    if BIAS:
        value += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def _scale(
    A, row_stats, col_stats, bias, result, M, N, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row, column = _tile(M, ROWS, COLUMNS)
    exist = (row < M)[:, None] & (column < N)[None, :]
    place = row[:, None] * N + column[None, :]
    total = tl.load(A + place, mask=exist, other=0)
    value = _scaled(total, row, column, row_stats, col_stats, bias, M, N, BIAS)
    tl.store(result + place, rounded(value, result.dtype.element_ty), mask=exist)


@triton.jit
def _multiply(
    A, B, row_stats, col_stats, bias, result, M, N, K,
    SCALED: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row, column = _tile(M, ROWS, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        x = tl.load(A + (row * K)[:, None] + k[None, :], mask=(row < M)[:, None] & (k < K)[None, :], other=0)
        exist = (column < N)[None, :] & (k < K)[:, None]
        weight = tl.load(B + (column * K)[None, :] + k[:, None], mask=exist, other=0)
        total = tl.dot(x, weight, total, out_dtype=tl.int32)
    place = row[:, None] * N + column[None, :]
    exist = (row < M)[:, None] & (column < N)[None, :]
    if SCALED:
        value = _scaled(total, row, column, row_stats, col_stats, bias, M, N, BIAS)
        tl.store(result + place, rounded(value, result.dtype.element_ty), mask=exist)
    else:
        tl.store(result + place, total, mask=exist)
