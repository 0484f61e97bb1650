"""The native int8 kernels against the reference bit for bit, and against integer and float64 mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import int8
from bnb_core.backends.cpu.levels import AVAILABLE
from bnb_core.backends.reference import int8 as reference
from bnb_core.ops_registry.formats import LARGEST_K
from bnb_core.ops_registry.tolerance import EXACT, Tolerance, differences

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1, 1), (3, 7), (5, 64), (7, 129), (2, 3, 31), (300,), (1, 4099), (13, 512), (0, 5), (4, 0))


@pytest.fixture(params=AVAILABLE)
def native(request: pytest.FixtureRequest) -> int8.Int8:
    """Each test runs once for each level of instructions that this CPU has."""
    kernels: int8.Int8 = getattr(int8.kernels, request.param)
    return kernels


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def generator(*seed: object) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seed) % 2**31)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=generator(*shape)) * scale).to(dtype)


def codes(*shape: int) -> Tensor:
    """All of int8, -128 too."""
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator(*shape, 8))


def positive(n: int) -> Tensor:
    return torch.rand(n, generator=generator(n)) + 0.01


def spread(x: Tensor) -> Tensor:
    """`x` with a gap after every element."""
    return torch.stack([x, torch.ones_like(x)], -1)[..., 0]


def assert_same(found: Any, expected: Any, tolerance: Tolerance = EXACT) -> None:
    assert not differences(found, expected, tolerance)


# -- quantizing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 2.0, 1e-50, 1e300, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantized_rows_and_columns(
    native: int8.Int8, shape: tuple[int, ...], dtype: torch.dtype, threshold: float
) -> None:
    A = normal(*shape, dtype=dtype)
    assert_same(native.int8_vectorwise_quant(A, threshold), reference.int8_vectorwise_quant(A, threshold))
    assert_same(native.int8_vectorwise_quant_mask(A, threshold), reference.int8_vectorwise_quant_mask(A, threshold))
    assert_same(native.int8_double_quant(A, threshold), reference.int8_double_quant(A, threshold))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_stay_in_their_rows_and_columns(native: int8.Int8, dtype: torch.dtype, threshold: float) -> None:
    specials = [math.nan, math.inf, -math.inf, -0.0, 0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny]
    specials += [torch.finfo(dtype).smallest_normal / 4, -threshold, threshold]
    A = normal(40, 70, dtype=dtype, scale=0.3)
    for i, value in enumerate(specials):
        A[3 * i, 5 * i] = value
    A[35] = 0
    A[:, 65] = 0
    assert_same(native.int8_vectorwise_quant(A, threshold), reference.int8_vectorwise_quant(A, threshold))
    assert_same(native.int8_double_quant(A, threshold), reference.int8_double_quant(A, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-149, -133, -126, -121, -120, -119, -24, -14, 100])
def test_rows_and_columns_of_every_magnitude(native: int8.Int8, exponent: int, dtype: torch.dtype) -> None:
    """From subnormal numbers on; below 2**-120 the inverse of absmax would overflow."""
    A = (normal(9, 45).double() * 2.0**exponent).to(dtype)
    A[:, 3] *= 0.25
    assert_same(native.int8_vectorwise_quant(A), reference.int8_vectorwise_quant(A))
    assert_same(native.int8_double_quant(A, 1e30), reference.int8_double_quant(A, 1e30))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_a_half_type(native: int8.Int8, dtype: torch.dtype) -> None:
    A = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(-1, 64)
    A = torch.cat([A, A.t().reshape(A.shape)])
    for threshold in (0.0, 1.0):
        assert_same(native.int8_vectorwise_quant(A, threshold), reference.int8_vectorwise_quant(A, threshold))


def test_ties_go_to_even(native: int8.Int8) -> None:
    A = torch.arange(-127, 127.5, 0.5).view(1, -1)
    q, absmax, _ = native.int8_vectorwise_quant(A)
    assert absmax.item() == 127
    assert torch.equal(q, A.round().to(torch.int8))


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantized_rows(native: int8.Int8, shape: tuple[int, ...]) -> None:
    A, stats = codes(*shape), positive(math.prod(shape[:-1]))
    assert_same(native.int8_vectorwise_dequant(A, stats), reference.int8_vectorwise_dequant(A, stats))


# -- products --------------------------------------------------------------------------------------------------------

WIDTHS = (0, 1, 3, 15, 16, 17, 31, 32, 33, 63, 100, 1360, 1377)


@pytest.mark.parametrize("K", WIDTHS)
@pytest.mark.parametrize("N", [0, 1, 2, 5, 65, 130])
def test_products_of_every_number_of_rows(native: int8.Int8, N: int, K: int) -> None:
    """1 to 6 rows in a tile, tiles of unequal rows, several groups of them; columns that do not fill a panel."""
    B = codes(N, K)
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 11, 13, 48, 49, 101):
        A = codes(rows, K)
        assert torch.equal(native.int8_mm(A, B).double(), A.double() @ B.double().t())


@pytest.mark.parametrize("K", [65537, LARGEST_K])
@pytest.mark.parametrize("a", [-128, 127])
def test_products_that_nearly_fill_32_bits(native: int8.Int8, a: int, K: int) -> None:
    A = torch.full((7, K), a, dtype=torch.int8)
    B = torch.full((3, K), -128, dtype=torch.int8)
    A[:, K // 2], B[1, -1] = 5, 3
    assert_same(native.int8_mm(A, B).long(), A.long() @ B.long().t())
    assert native.int8_mm(A, B)[0, 0] == -128 * (a * (K - 1) + 5)


def test_more_rows_than_are_widened_at_once(native: int8.Int8) -> None:
    """Blocks of rows: 4 MB of activations in 16 bits hold fewer than these."""
    A, B = codes(70, LARGEST_K), codes(2, LARGEST_K)
    assert torch.equal(native.int8_mm(A, B).double(), A.double() @ B.double().t())


def test_product_of_more_dimensions_and_strides(native: int8.Int8) -> None:
    A, B = codes(4, 5, 40), codes(40, 9)
    expected = (A.double().transpose(0, 1) @ B.double()).to(torch.int32)
    assert torch.equal(native.int8_mm(A.transpose(0, 1), B.t()), expected)
    assert torch.equal(native.int8_mm(A[0, 0], B.t()), (A[0, 0].double() @ B.double()).to(torch.int32))


@pytest.mark.parametrize("contiguous", [True, False])
def test_out_is_written_and_nothing_around_it(native: int8.Int8, contiguous: bool) -> None:
    A, B = codes(8, 33), codes(5, 33)
    memory = torch.full((10, 5) if contiguous else (5, 10), 7, dtype=torch.int32)
    around = memory if contiguous else memory.t()
    native.int8_mm(A, B, out=around[1:9])
    assert torch.equal(around[1:9].double(), A.double() @ B.double().t())
    assert (around[0] == 7).all()
    assert (around[9] == 7).all()


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("shape", [*SHAPES, (70, 200)])
def test_scaled_sums(native: int8.Int8, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    sums = torch.randint(-(2**31), 2**31, shape, generator=generator(*shape), dtype=torch.int64).to(torch.int32)
    stats = positive(math.prod(shape[:-1])), positive(shape[-1])
    for bias in (None, *(normal(shape[-1], dtype=dtype) for dtype in DTYPES)):
        args = (sums, *stats, dtype, bias)
        assert_same(native.int8_mm_dequant(*args), reference.int8_mm_dequant(*args))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("N", [1, 70])
def test_scaled_products(native: int8.Int8, shape: tuple[int, ...], N: int, dtype: torch.dtype) -> None:
    stats = positive(math.prod(shape[:-1])), positive(N)
    args = (codes(*shape), codes(N, shape[-1]), *stats)
    assert_same(native.int8_scaled_mm(*args), reference.int8_scaled_mm(*args))
    for bias_dtype in DTYPES:
        args = (*args[:4], normal(N, dtype=bias_dtype), dtype)
        assert_same(native.int8_scaled_mm(*args), reference.int8_scaled_mm(*args))


def dyadic(*shape: int) -> Tensor:
    """Small multiples of 1/8: their sums of products are exact in fp32, in any order."""
    return torch.randint(-32, 33, shape, generator=generator(*shape, 3)) / 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 5, 32, 33, 100])
@pytest.mark.parametrize("rows", [1, 9, 60])
def test_outliers_are_rounded_where_the_reference_rounds(
    native: int8.Int8, rows: int, count: int, dtype: torch.dtype
) -> None:
    """With scales of 127 the weight of the outliers is its codes, and every sum is exact: only rounding remains."""
    K, N = 200, 67
    A, CA, CB = dyadic(rows, K).to(dtype), codes(rows, K), codes(N, K)
    columns = torch.randperm(K, generator=generator(count))[:count]
    args = (A, CA, CB, positive(rows), torch.full((N,), 127.0), columns, normal(N, dtype=dtype))
    assert_same(native.int8_mixed_scaled_mm(*args), reference.int8_mixed_scaled_mm(*args))
    none = (*args[:5], None, args[-1])
    assert_same(native.int8_mixed_scaled_mm(*none), reference.int8_mixed_scaled_mm(*none))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_with_any_scales(native: int8.Int8, dtype: torch.dtype) -> None:
    bound = Tolerance({torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3})
    A, columns = normal(3, 7, 90, dtype=dtype), spread(torch.tensor([80, 2, 2, 41]))
    args = (A, codes(3, 7, 90), codes(70, 90), positive(21), positive(70), columns)
    assert_same(native.int8_mixed_scaled_mm(*args), reference.int8_mixed_scaled_mm(*args), bound)


@pytest.mark.parametrize("column", [-1, 16])
def test_an_outlier_column_that_is_not_there_is_an_error(native: int8.Int8, column: int) -> None:
    args = (normal(2, 16), codes(2, 16), codes(3, 16), positive(2), positive(3), torch.tensor([1, column]))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|DATA bounds)"):
        native.int8_mixed_scaled_mm(*args)


def linear_in_float64(A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """The layer's mathematics, with the codes and outliers that the reference finds, and nothing rounded after."""
    q, absmax, columns = reference.int8_vectorwise_quant(A, threshold)
    weight = CB.double() * SCB.double()[:, None]
    scale = float(torch.tensor(reference.PRODUCT_SCALE))
    result = (q.double() * absmax.double().view(*A.shape[:-1], 1)) @ weight.t() * scale
    if columns is not None:
        result += A.double()[..., columns] @ weight[:, columns].t() / 127
    return result if bias is None else result + bias.double()


@pytest.mark.parametrize("threshold", [0.0, 2.5, 0.01])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(native: int8.Int8, shape: tuple[int, ...], dtype: torch.dtype, threshold: float) -> None:
    bound = Tolerance({torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3})
    A, N = normal(*shape, dtype=dtype), 70
    for bias in (None, normal(N, dtype=dtype)):
        args = (A, codes(N, shape[-1]), positive(N), bias, threshold)
        found = native.int8_linear(*args)
        assert found.is_contiguous()
        assert_same(found, reference.int8_linear(*args), bound)
        assert_same(found, linear_in_float64(*args).to(dtype), bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_without_outliers_is_the_reference_bit_for_bit(native: int8.Int8, dtype: torch.dtype) -> None:
    A = normal(50, 777, dtype=dtype)
    A[3], A[4, 5], A[5, 6] = 0, math.nan, math.inf
    args = (A, codes(99, 777), positive(99), normal(99))
    found = native.int8_linear(*args)
    assert_same(found, reference.int8_linear(*args))
    assert found[4:6].isnan().all()
    assert not found[6:].isnan().any()
    A[5, 6] = 0
    assert_same(native.int8_linear(*args, 1e30), native.int8_linear(*args))


def test_linear_of_more_rows_than_are_widened_at_once(native: int8.Int8) -> None:
    A, CB = normal(700, 4100), codes(3, 4100)
    A[650, 9] = 50
    for threshold in (0.0, 20.0):
        args = (A, CB, positive(3), None, threshold)
        assert_same(native.int8_linear(*args), reference.int8_linear(*args), Tolerance({torch.float32: 1e-6}))


def test_strided_inputs(native: int8.Int8) -> None:
    A, CB, stats = normal(40, 12).t(), codes(40, 8).t(), spread(positive(8))
    bias, rows = spread(normal(8)), spread(positive(12))
    assert_same(native.int8_vectorwise_quant(A, 2.0), reference.int8_vectorwise_quant(A, 2.0))
    assert_same(native.int8_double_quant(A, 2.0), reference.int8_double_quant(A, 2.0))
    assert_same(native.int8_vectorwise_dequant(CB, stats), reference.int8_vectorwise_dequant(CB, stats))
    sums = reference.int8_mm(codes(40, 12).t(), CB).t().contiguous().t()
    assert_same(
        native.int8_mm_dequant(sums, rows, stats, torch.float32, bias),
        reference.int8_mm_dequant(sums, rows, stats, torch.float32, bias),
    )
    args = (codes(40, 12).t(), CB, rows, stats, bias)
    assert_same(native.int8_scaled_mm(*args), reference.int8_scaled_mm(*args))
    assert_same(native.int8_linear(A, CB, stats, bias), reference.int8_linear(A, CB, stats, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(
    native: int8.Int8, threads: Callable[[int], None], dtype: torch.dtype
) -> None:
    A, CB, stats, bias = normal(130, 1000, dtype=dtype), codes(300, 1000), positive(300), normal(300)
    rows, columns = positive(130), torch.tensor([3, 700])
    calls: list[Callable[[], Any]] = [
        lambda: native.int8_vectorwise_quant(A, 2.5),
        lambda: native.int8_double_quant(A, 2.5),
        lambda: native.int8_vectorwise_dequant(CB, stats),
        lambda: native.int8_mm(codes(130, 1000), CB),
        lambda: native.int8_mm_dequant(codes(130, 300).int() * 1000, rows, stats, dtype, bias),
        lambda: native.int8_mixed_scaled_mm(A, codes(130, 1000), CB, rows, stats, columns, bias),
        lambda: native.int8_linear(A, CB, stats, bias, 2.5),
        lambda: native.int8_linear(A[:1], CB, stats),
    ]
    threads(1)
    expected = [call() for call in calls]
    for count in (2, 3, 7):
        threads(count)
        for call, want in zip(calls, expected, strict=True):
            assert_same(call(), want)


def test_inputs_are_not_written(native: int8.Int8) -> None:
    A, CA, CB, columns = normal(5, 40), codes(5, 40), codes(9, 40), torch.tensor([1, 7])
    inputs = (A, CA, CB, positive(5), positive(9), columns, normal(9))
    before = [x.clone() for x in inputs]
    native.int8_mixed_scaled_mm(*inputs)
    native.int8_linear(A, CB, inputs[4], inputs[6], 1.0)
    native.int8_double_quant(A, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("level", AVAILABLE)
def test_the_ops_run_these_kernels_on_cpu(level: str) -> None:
    from bnb_core.ops_registry import force, kernel_counts, reset_kernel_counts

    A, CB, SCB = normal(3, 32), codes(5, 32), positive(5)
    reset_kernel_counts()
    with force(f"cpu/{level}"):
        torch.ops.bnb_core.int8_linear(A, CB, SCB)
        out = torch.empty(3, 5, dtype=torch.int32)
        torch.ops.bnb_core.int8_mm.out(codes(3, 32), CB, out)
    assert kernel_counts() == {("int8_linear", "cpu", f"cpu/{level}"): 1, ("int8_mm", "cpu", f"cpu/{level}"): 1}
    assert torch.equal(out, reference.int8_mm(codes(3, 32), CB))
