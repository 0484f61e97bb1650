"""The reference against the mathematics it stands for, in float64 and integers; its functions are called directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bnb_core.backends.reference import blockwise, fourbit, int8, optimizer, statistics
from bnb_core.ops_registry import OPTIMIZER_STATES
from bnb_core.ops_registry.codebooks import FOUR_BIT, decision_table, dynamic_map, fp8_map, linear_map
from bnb_core.ops_registry.precision import fp32_product, full_fp32

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NAN_BITS = 0x7FC00000

CODES = {
    "dynamic": dynamic_map(),
    "unsigned": dynamic_map(signed=False),
    "linear": linear_map(),
    "fp8, two zeros": fp8_map(True, 4, 3),
    "4 bits, 240 equal": dynamic_map(True, 3, 4),
    "unsorted, equals": torch.tensor([0.25, -1.0, 0.0, 1.0, 0.25, -0.3, 0.0, -1.0]),
    "one entry": torch.tensor([0.5]),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1e-300)) if want.numel() else 0.0


# -- block-wise 8 bit -------------------------------------------------------------------------------------------------


def scales(x: Tensor, blocksize: int) -> Tensor:
    """Largest magnitude of each block, by a loop."""
    flat = x.reshape(-1).float()
    return torch.stack([flat[i : i + blocksize].abs().max() for i in range(0, flat.numel(), blocksize)])


def per_element(absmax: Tensor, blocksize: int, count: int) -> Tensor:
    return absmax.repeat_interleave(blocksize)[:count]


def check_nearest(t: Tensor, codes: Tensor, code: Tensor, lowest_index: bool = True) -> None:
    """No code value is nearer to t, except that a number on the rounded midpoint of two belongs to the lower one."""
    code64, found = code.double(), code[codes.long()].double()
    distance = (t.double()[:, None] - code64).abs()
    best = distance.min(dim=1).values
    values = code64.unique()
    midpoints = ((values[1:] + values[:-1]) / 2).float()
    on_midpoint = torch.isin(t, midpoints)
    nearest = (t.double() - found).abs() <= best
    assert bool((nearest | on_midpoint).all())
    below = torch.searchsorted(midpoints, t)  # midpoints < t
    assert torch.equal(found, values[below])
    if lowest_index:
        first = torch.stack([(code64 == v).nonzero()[0, 0] for v in values])
        assert torch.equal(codes.long(), first[below])


def test_nothing_is_nearest_to_nan() -> None:
    table = decision_table(torch.tensor([0.5, torch.nan, -1.0, torch.nan]))
    assert table.nearest(torch.tensor([-1.0, -0.3, 0.1])).tolist() == [2, 2, 0]


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_quantize_blockwise_finds_the_nearest_code(code: Tensor, device: torch.device) -> None:
    boundaries = decision_table(code).boundaries
    neighbours = [torch.nextafter(boundaries, torch.tensor(side)) for side in (-2.0, 2.0)]
    ones = torch.ones(1)
    A = torch.cat([ones, boundaries, *neighbours, code, -code.flip(0), normal(2000, seed=1, scale=0.3)]).clamp(-1, 1)
    q, absmax = blockwise.quantize_blockwise(A.to(device), code.to(device), A.numel())
    assert absmax.tolist() == [1.0]
    check_nearest(A, q.cpu(), code)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "blocksize"), [((1000,), 64), ((7, 33), 100), ((3, 5, 7), 1), ((65,), 64), ((5,), 2**40)]
)
def test_quantize_blockwise_scales(
    dtype: torch.dtype, shape: tuple[int, ...], blocksize: int, device: torch.device
) -> None:
    A = normal(*shape, dtype=dtype)
    q, absmax = blockwise.quantize_blockwise(A.to(device), CODES["dynamic"].to(device), blocksize)
    want = scales(A, min(blocksize, A.numel()))
    assert q.shape == A.shape
    assert torch.equal(absmax.cpu(), want)
    t = A.reshape(-1).float() / per_element(want, min(blocksize, A.numel()), A.numel())
    check_nearest(t, q.cpu().reshape(-1), CODES["dynamic"])


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-3.0000000054977558e38, 3.0000000054977558e38, width=32), min_size=1, max_size=40),
    blocksize=st.integers(1, 50),
    name=st.sampled_from(sorted(CODES)),
)
def test_quantize_blockwise_of_any_numbers(values: list[float], blocksize: int, name: str) -> None:
    A = torch.tensor(values)
    q, absmax = blockwise.quantize_blockwise(A, CODES[name], blocksize)
    assert torch.equal(absmax, scales(A, blocksize))
    scale = per_element(absmax, blocksize, A.numel())
    check_nearest(torch.where(scale > 0, A / scale, 0.0), q, CODES[name])


def specials(quantize: Callable[[Tensor], tuple[Tensor, Tensor]], zero_codes: set[int]) -> None:
    """Blocks of 64: normal, zero, with NaN, with Inf, with -Inf, a short one with NaN."""
    A = normal(64 * 5 + 9)
    A[64:128] = 0
    A[130], A[200], A[300], A[-1] = math.nan, math.inf, -math.inf, math.nan
    codes, absmax = quantize(A)
    clean, clean_absmax = quantize(A[:64])
    assert torch.equal(codes[:64], clean)
    assert absmax[:2].tolist() == [clean_absmax[0], 0.0]
    assert set(codes[64:].tolist()) == zero_codes
    assert absmax[2:].cpu().view(torch.int32).tolist() == [NAN_BITS] * 4


def test_quantize_blockwise_specials(device: torch.device) -> None:
    code = CODES["dynamic"].to(device)
    specials(lambda A: blockwise.quantize_blockwise(A.to(device), code, 64), {127})
    A = normal(128)
    A[3] = math.inf
    q, absmax = blockwise.quantize_blockwise(A.to(device), code, 64)
    values = blockwise.dequantize_blockwise(q, absmax, code, 64, torch.bfloat16).cpu()
    assert bool(values[:64].isnan().all())
    assert not bool(values[64:].isnan().any())


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-38, 1e30])
def test_quantize_blockwise_of_extreme_scales(scale: float, device: torch.device) -> None:
    A = normal(200, scale=scale)
    q, absmax = blockwise.quantize_blockwise(A.to(device), CODES["dynamic"].to(device), 64)
    want = scales(A, 64)
    assert torch.equal(absmax.cpu(), want)
    check_nearest(torch.where(A == 0, 0.0, A / per_element(want, 64, 200)), q.cpu(), CODES["dynamic"])


@pytest.mark.parametrize("dtype", FLOATS)
def test_dequantize_blockwise_rounds_once(dtype: torch.dtype, device: torch.device) -> None:
    code = normal(200, seed=3)
    q = torch.arange(256, dtype=torch.uint8).repeat(3)[:700].view(7, 100)
    absmax = normal(7, seed=4).abs()
    got = blockwise.dequantize_blockwise(q.to(device), absmax.to(device), code.to(device), 100, dtype)
    padded = torch.cat([code.double(), torch.full((56,), math.nan, dtype=torch.float64)])
    want = (padded[q.long().reshape(-1)] * per_element(absmax, 100, 700).double()).float().to(dtype).view(7, 100)
    assert torch.equal(got.cpu().nan_to_num(9.0), want.nan_to_num(9.0))
    assert bool(got.cpu().isnan().reshape(-1)[q.reshape(-1) >= 200].all())


def test_blockwise_writes_to_out(device: torch.device) -> None:
    A, code = normal(10, 33).to(device), CODES["dynamic"].to(device)
    q, absmax = blockwise.quantize_blockwise(A, code, 64)
    outs = torch.empty(33, 10, dtype=torch.uint8, device=device).t(), torch.empty_like(absmax)
    blockwise.quantize_blockwise(A, code, 64, out=outs)
    assert torch.equal(outs[0], q)
    assert torch.equal(outs[1], absmax)
    out = torch.empty(33, 10, device=device).t()
    blockwise.dequantize_blockwise(q, absmax, code, 64, torch.float32, out=out)
    assert torch.equal(out, blockwise.dequantize_blockwise(q, absmax, code, 64, torch.float32))


@pytest.mark.parametrize("shape", [(0,), (4, 0, 2), ()])
def test_blockwise_of_nothing_and_of_one(shape: tuple[int, ...], device: torch.device) -> None:
    code = CODES["dynamic"].to(device)
    q, absmax = blockwise.quantize_blockwise(torch.full(shape, -2.0, device=device), code, 64)
    assert (q.shape, absmax.numel()) == (shape, q.numel())
    values = blockwise.dequantize_blockwise(q, absmax, code, 64, torch.float16)
    assert values.shape == shape
    assert values.tolist() == torch.full(shape, -2.0 * 0.99296875).half().tolist()


def test_results_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    A, code = normal(1003, 7).to(device), CODES["dynamic"].to(device)
    x, indices = normal(3, 7).to(device), torch.tensor([5, 1002, 0, 5], device=device)

    def everything() -> Iterator[Tensor]:
        q, absmax = blockwise.quantize_blockwise(A, code, 100)
        packed, scale = fourbit.quantize_4bit(A, 16, "nf4", torch.uint8)
        yield from (q, absmax, packed, scale)
        yield blockwise.dequantize_blockwise(q, absmax, code, 100, torch.float32)
        yield fourbit.dequantize_4bit(packed, scale, 16, "nf4", (1003, 7), torch.float32)
        yield fourbit.embedding_4bit(indices, packed, (1003, 7), scale, 16, "nf4", torch.float32)
        yield from (t for t in int8.int8_double_quant(A, 2.5) if t is not None)
        yield fourbit.gemm_4bit(x, packed, (1003, 7), scale, 16, "nf4")

    *exact, gemm = everything()
    for module in (blockwise, fourbit, int8):
        monkeypatch.setattr(module, "CHUNK", 300)
    *chunked, gemm_chunked = everything()
    assert all(torch.equal(a, b) for a, b in zip(exact, chunked, strict=True))
    torch.testing.assert_close(gemm, gemm_chunked, rtol=1e-5, atol=1e-5)


# -- 4 bit ------------------------------------------------------------------------------------------------------------


def nibbles(packed: Tensor, count: int) -> Tensor:
    data = packed.cpu().contiguous().reshape(-1).view(torch.uint8)
    return torch.stack([data >> 4, data & 15], dim=1).reshape(-1)[:count]


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "blocksize"), [((33, 130), 64), ((1001,), 16), ((5,), 4096)])
def test_quantize_4bit_finds_the_nearest_code(
    quant_type: str, dtype: torch.dtype, shape: tuple[int, ...], blocksize: int, device: torch.device
) -> None:
    A = normal(*shape, dtype=dtype)
    packed, absmax = fourbit.quantize_4bit(A.to(device), blocksize, quant_type, torch.uint8)
    want = scales(A, blocksize)
    assert torch.equal(absmax.cpu(), want)
    t = A.reshape(-1).float() * (1 / per_element(want, blocksize, A.numel()))
    check_nearest(t, nibbles(packed, A.numel()), torch.tensor(FOUR_BIT[quant_type]), lowest_index=quant_type == "nf4")


def test_quantize_4bit_specials(device: torch.device) -> None:
    for quant_type, zero in (("nf4", 7), ("fp4", 0)):

        def quantize(A: Tensor, quant_type: str = quant_type) -> tuple[Tensor, Tensor]:
            packed, absmax = fourbit.quantize_4bit(A.to(device), 64, quant_type, torch.uint8)
            return nibbles(packed, A.numel()), absmax

        specials(quantize, {zero})
        packed, _ = fourbit.quantize_4bit(torch.ones(3, device=device), 64, quant_type, torch.float32)
        filler = packed.cpu().view(torch.uint8).reshape(-1)
        assert int(filler[1]) & 15 == zero
        assert filler[2:].tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-39, 1e38])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_quantize_4bit_of_extreme_scales(quant_type: str, scale: float, device: torch.device) -> None:
    A = normal(200, scale=scale).clamp(-3.4e38, 3.4e38)
    packed, absmax = fourbit.quantize_4bit(A.to(device), 64, quant_type, torch.uint8)
    assert torch.equal(absmax.cpu(), scales(A, 64))
    values = torch.tensor(FOUR_BIT[quant_type], dtype=torch.float64)
    t = torch.where(A == 0, 0.0, A.double() / per_element(absmax.cpu().double(), 64, 200))
    error = (values[nibbles(packed, 200).long()] - t).abs()
    assert bool((error <= (t[:, None] - values).abs().min(dim=1).values + 1e-6).all())


@pytest.mark.parametrize("storage", [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 129])
def test_packed_bytes_do_not_depend_on_storage(storage: torch.dtype, count: int, device: torch.device) -> None:
    A = normal(count).to(device)
    plain, absmax = fourbit.quantize_4bit(A, 64, "nf4", torch.uint8)
    packed, _ = fourbit.quantize_4bit(A, 64, "nf4", storage)
    assert packed.shape == (-(-plain.numel() // storage.itemsize), 1)
    assert torch.equal(packed.view(torch.uint8).reshape(-1)[: plain.numel()], plain.reshape(-1))
    got = [fourbit.dequantize_4bit(p, absmax, 64, "nf4", (count,), torch.float32) for p in (plain, packed, packed.t())]
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_dequantize_4bit_rounds_once(quant_type: str, dtype: torch.dtype, device: torch.device) -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(-1, 1)
    absmax = normal(32, seed=2).abs()
    code = torch.tensor(FOUR_BIT[quant_type], dtype=torch.float64)
    exact = code[nibbles(packed, 511).long()] * per_element(absmax, 16, 511).double()
    want = exact.float().to(dtype).view(7, 73)
    args = (packed.to(device), absmax.to(device), 16, quant_type, (7, 73), dtype)
    assert torch.equal(fourbit.dequantize_4bit(*args).cpu(), want)
    out = torch.empty(73, 7, dtype=dtype, device=device).t()
    fourbit.dequantize_4bit(*args, out=out)
    assert torch.equal(out.cpu(), want)


def weight(rows: int, columns: int, blocksize: int, nested: bool) -> tuple[tuple[Any, ...], tuple[Tensor, ...], Tensor]:
    """(B, shapeB, absmax, blocksize, type), the nested statistics, and the weight they stand for in float64."""
    packed, absmax = fourbit.quantize_4bit(normal(rows, columns, seed=5), blocksize, "nf4", torch.uint8)
    statistics: tuple[Tensor, ...] = ()
    if nested:
        offset = absmax.mean() if absmax.numel() else torch.tensor(0.0)
        code = dynamic_map()
        codes, outer = blockwise.quantize_blockwise(absmax - offset, code, 256)
        absmax = blockwise.dequantize_blockwise(codes, outer, code, 256, torch.float32) + offset
        statistics = (codes, code, offset)
    each = per_element(absmax, blocksize, rows * columns).double()
    exact = torch.tensor(FOUR_BIT["nf4"], dtype=torch.float64)[nibbles(packed, rows * columns).long()] * each
    return (
        (packed, (rows, columns), outer if nested else absmax, blocksize, "nf4"),
        statistics,
        exact.view(rows, columns),
    )


def to(device: torch.device, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("lead", "rows", "columns", "blocksize"),
    [((3,), 40, 96, 64), ((), 7, 33, 64), ((2, 3), 5, 130, 16), ((1,), 600, 512, 32),
     ((0,), 4, 8, 16), ((2,), 0, 8, 16), ((2,), 3, 0, 16)],
)  # fmt: skip
def test_gemm_4bit_is_the_float64_product(
    dtype: torch.dtype,
    nested: bool,
    lead: tuple[int, ...],
    rows: int,
    columns: int,
    blocksize: int,
    device: torch.device,
) -> None:
    B, statistics, exact = weight(rows, columns, blocksize, nested)
    A, bias = normal(*lead, columns, dtype=dtype), normal(rows, seed=8, dtype=dtype)
    want = A.double() @ exact.t() + bias.double()
    got = fourbit.gemm_4bit(A.to(device), *to(device, B), bias.to(device), *to(device, statistics))
    assert (got.dtype, got.shape) == (dtype, (*lead, rows))
    assert relative_error(got, want) <= {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    out = torch.empty_like(got)
    fourbit.gemm_4bit(A.to(device), *to(device, B), bias.to(device), *to(device, statistics), out=out)
    assert torch.equal(out, got)
    assert bool((got.cpu().double() - want.to(dtype).double()).abs().le(want.abs() * 8e-3 + 1e-4).all())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("rows", "columns", "blocksize"), [(50, 33, 64), (20, 96, 16), (7, 5, 4096)])
def test_embedding_4bit_is_rows_of_the_weight(
    nested: bool, rows: int, columns: int, blocksize: int, device: torch.device
) -> None:
    B, statistics, exact = weight(rows, columns, blocksize, nested)
    indices = torch.tensor([[rows - 1, 0, 3], [3, 3, 1]])
    for dtype in FLOATS:
        got = fourbit.embedding_4bit(indices.to(device), *to(device, B), dtype, *to(device, statistics))
        assert got.dtype == dtype
        assert torch.equal(got.cpu(), exact[indices].float().to(dtype))
    nothing = torch.empty(0, 2, dtype=torch.int32, device=device)
    assert fourbit.embedding_4bit(nothing, *to(device, B), torch.float32, *to(device, statistics)).shape == (
        0,
        2,
        columns,
    )


@pytest.mark.parametrize("index", [-1, 7, 2**40])
def test_embedding_4bit_refuses_indices_outside(index: int) -> None:
    B, _, _ = weight(7, 5, 16, nested=False)
    with pytest.raises(IndexError):
        fourbit.embedding_4bit(torch.tensor([index]), *B, torch.float32)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_fp32_whatever_the_process_allows(precision: str, device: torch.device) -> None:
    a, b = normal(64, 700), normal(50, 700, seed=1)
    with matmul_precision(precision), torch.autocast(device.type, dtype=torch.bfloat16):
        got = fp32_product(a.to(device), b.to(device))
        assert torch.get_float32_matmul_precision() == precision
    assert relative_error(got, a.double() @ b.double().t()) <= 1e-6


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch >= 2.9 has it")
def test_precision_settings_of_backends_come_back() -> None:
    backends: Any = torch.backends
    matmul = backends.cuda.matmul
    before = backends.fp32_precision, matmul.fp32_precision
    try:
        backends.fp32_precision = "tf32"
        matmul.fp32_precision = "none"
        with full_fp32():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        backends.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee", "what was inherited must still be"
    finally:
        backends.fp32_precision, matmul.fp32_precision = before


# -- int8 -------------------------------------------------------------------------------------------------------------


def activations(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    A = normal(rows, columns, dtype=dtype)
    A[0, 1], A[-1, 3], A[1, 3] = 9, -20, 6
    return A


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_vectorwise_quant(dtype: torch.dtype, threshold: float, device: torch.device) -> None:
    A = activations(13, 72, dtype)
    original = A.clone()
    q, absmax, columns = int8.int8_vectorwise_quant(A.to(device), threshold)
    inliers = A.double()
    if threshold:
        inliers[inliers.abs() >= threshold] = 0
        assert columns is not None
        assert columns.tolist() == [1, 3]
    else:
        assert columns is None
    want = inliers.abs().max(dim=1).values
    assert torch.equal(absmax.cpu().double(), want)
    exact = inliers * 127 / want[:, None]
    exact[:, [1, 3]] *= not threshold
    assert bool(((q.cpu().double() - exact).abs() <= 0.5 + 1e-4).all())
    assert torch.equal(A, original)
    masked, _, mask = int8.int8_vectorwise_quant_mask(A.to(device), threshold)
    assert torch.equal(masked, q)
    assert mask.nonzero().view(-1).tolist() == ([1, 3] if threshold else [])


def test_int8_vectorwise_quant_specials(device: torch.device) -> None:
    A = normal(6, 40)
    A[0], A[1, 5], A[2, 6], A[3] = 0, math.nan, math.inf, normal(40, seed=2) * 1e-42
    q, absmax, columns = (t if t is None else t.cpu() for t in int8.int8_vectorwise_quant(A.to(device)))
    assert columns is None
    assert q is not None
    assert absmax is not None
    assert absmax[0] == 0
    assert absmax[1:3].view(torch.int32).tolist() == [NAN_BITS] * 2
    assert int(q[:3].abs().max()) == 0
    assert bool(((q[3].double() - A[3].double() * 127 / A[3].double().abs().max()).abs() <= 0.5 + 1e-4).all())
    clean, clean_absmax, _ = int8.int8_vectorwise_quant(A[3:].to(device))
    assert torch.equal(q[3:], clean.cpu())
    assert torch.equal(absmax[3:], clean_absmax.cpu())
    _, absmax, columns = int8.int8_vectorwise_quant(A.to(device), 6.0)  # here Inf is an outlier, NaN is not
    assert columns is not None
    assert columns.tolist() == [6]
    assert absmax.isnan().tolist() == [False, True, False, False, False, False]


def test_int8_codes_round_half_to_even(device: torch.device) -> None:
    A = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.0]], device=device)
    assert int8.int8_vectorwise_quant(A)[0].tolist() == [[0, 2, 2, 0, -2, -2, 127]]


@pytest.mark.parametrize("shape", [(5,), (2, 3, 40), (0, 8), (3, 0)])
def test_int8_quant_of_other_shapes(shape: tuple[int, ...], device: torch.device) -> None:
    A = normal(*shape).to(device)
    q, absmax, columns = int8.int8_vectorwise_quant(A, 2.0)
    assert (q.shape, absmax.shape) == (shape, (math.prod(shape[:-1]),))
    assert columns is not None
    values = int8.int8_vectorwise_dequant(q, absmax)
    keep = torch.ones(shape[-1], device=device).index_fill(0, columns, 0.0)
    assert values.shape == shape
    bound = (absmax / 254 * 1.001 + 1e-6).view(*shape[:-1], 1)
    assert bool(((values - A * keep).abs() <= bound).all())


def test_int8_double_quant(device: torch.device) -> None:
    A = activations(13, 72).to(device)
    q_row, q_col, row_absmax, col_absmax, columns = int8.int8_double_quant(A, 6.0)
    assert columns is not None
    assert columns.tolist() == [1, 3]
    inliers = A.masked_fill(A.abs() >= 6, 0)
    assert torch.equal(row_absmax, inliers.abs().amax(dim=1))
    assert torch.equal(col_absmax, inliers.abs().amax(dim=0))
    assert torch.equal(q_row, int8.int8_vectorwise_quant(A, 6.0)[0])
    exact = inliers * 127 / col_absmax
    exact[:, [1, 3]] = 0
    assert bool(((q_col - exact).abs() <= 0.5 + 1e-4).all())


@pytest.mark.parametrize("K", [0, 1, 33, 1023, 1024, 1025, 5000])
def test_int8_mm_is_exact(K: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(K)
    A = torch.randint(-128, 128, (2, 3, K), generator=generator, dtype=torch.int8)
    B = torch.randint(-128, 128, (5, K), generator=generator, dtype=torch.int8)
    A[0, 0], B[0] = -128, -128
    want = (A.reshape(6, K).long() @ B.long().t()).view(2, 3, 5)
    got = int8.int8_mm(A.to(device), B.to(device))
    assert got.dtype == torch.int32
    assert torch.equal(got.cpu().long(), want)
    out = torch.empty(5, 3, 2, dtype=torch.int32, device=device).permute(2, 1, 0)
    int8.int8_mm(A.to(device), B.to(device), out=out)
    assert torch.equal(out, got)


def test_int8_mm_at_the_largest_k(device: torch.device) -> None:
    A = torch.full((1, 131071), -128, dtype=torch.int8, device=device)
    assert int8.int8_mm(A, A).item() == 131071 * 128 * 128


@pytest.mark.parametrize("dtype", [None, *FLOATS])
def test_int8_mm_dequant(dtype: torch.dtype | None, device: torch.device) -> None:
    A = torch.randint(-(10**6), 10**6, (4, 3, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    rows, columns, bias = normal(12).abs(), normal(9, seed=1).abs(), normal(9, seed=2, dtype=dtype or torch.float16)
    got = int8.int8_mm_dequant(*to(device, (A, rows, columns, dtype, bias)))
    exact = A.double() * rows.double().view(4, 3, 1) * columns.double() * 6.200124e-05
    assert got.dtype == (dtype or torch.float16)
    bound = {torch.float32: 5e-7, torch.bfloat16: 2**-8}.get(got.dtype, 2**-11)
    error = (got.cpu().double() - exact - bias.double()).abs()
    assert bool((error <= bound * (exact.abs() + bias.double().abs())).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_linear(dtype: torch.dtype, threshold: float, device: torch.device) -> None:
    A = activations(12, 72, dtype).view(2, 6, 72)
    CB, SCB, _ = int8.int8_vectorwise_quant(normal(40, 72, seed=1))
    bias = normal(40, seed=2, dtype=dtype)
    got = int8.int8_linear(*to(device, (A, CB, SCB, bias, threshold)))
    q, absmax, columns = int8.int8_vectorwise_quant(A, threshold)
    scaled = CB.double() * SCB.double()[:, None] / 127
    want = (q.double() * absmax.double().view(2, 6, 1) / 127) @ scaled.t() + bias.double()
    if columns is not None:
        want += A.double()[..., columns] @ scaled[:, columns].t()
    assert (got.dtype, got.shape) == (dtype, (2, 6, 40))
    assert relative_error(got, want) <= {torch.float32: 2.5e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}[dtype]
    rough = A.double() @ scaled.t() + bias.double()
    assert relative_error(got, rough) <= 0.03


@pytest.mark.parametrize("dtype", FLOATS)
def test_int8_mixed_scaled_mm(dtype: torch.dtype, device: torch.device) -> None:
    A = activations(12, 72, dtype)
    CB, SCB, _ = int8.int8_vectorwise_quant(normal(40, 72, seed=1))
    CA, SCA, columns = int8.int8_vectorwise_quant(A, 6.0)
    args = to(device, (A, CA, CB, SCA, SCB, columns))
    got, outliers = int8.int8_mixed_scaled_mm(*args)
    assert columns is not None
    assert torch.equal(outliers.cpu(), A[:, columns])
    exact = int8.int8_linear(*to(device, (A, CB, SCB, None, 6.0)))
    assert relative_error(got, exact.cpu().double()) <= {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype, 1e-6)
    got, outliers = int8.int8_mixed_scaled_mm(*args[:5])
    assert outliers.shape == (0,)
    assert torch.equal(got, int8.int8_scaled_mm(*args[1:5], None, dtype))


# -- statistics -------------------------------------------------------------------------------------------------------


def test_percentile_clipping(device: torch.device) -> None:
    history = torch.zeros(100, device=device)
    norms: list[float] = []
    for step in range(1, 230):
        grad = normal(50, seed=step, scale=1 + step % 7)
        current, clip, scale = statistics.percentile_clipping(grad.to(device), history, step, 5)
        norms.append(float(grad.double().norm()))
        recent = sorted([*norms[-100:], *[0.0] * (100 - len(norms[-100:]))])
        assert current.item() == pytest.approx(norms[-1], rel=1e-6)
        assert clip.item() == pytest.approx(recent[5], rel=1e-6)
        assert scale.item() == pytest.approx(min(1.0, recent[5] / norms[-1]), rel=1e-6)
    assert history[229 % 100].item() == pytest.approx(norms[-1] ** 2, rel=1e-6)


def test_percentile_clipping_of_a_zero_gradient_does_not_scale(device: torch.device) -> None:
    results = statistics.percentile_clipping(torch.zeros(5, device=device), torch.ones(100, device=device), 3)
    assert [r.item() for r in results] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 4099])
@pytest.mark.parametrize(("offset", "number"), [(1 / 512, 256), (0.0, 5), (0.01, 1)])
def test_estimate_quantiles(count: int, offset: float, number: int, device: torch.device) -> None:
    A = normal(count, dtype=torch.float16)
    positions = torch.linspace(offset, 1 - offset, number, dtype=torch.float64)
    want = torch.quantile(A.double(), positions)
    got = statistics.estimate_quantiles(A.to(device).view(1, -1), offset, number)
    assert (got.dtype, got.shape) == (torch.float32, (number,))
    assert relative_error(got, want) <= 1e-6


# -- optimizers -------------------------------------------------------------------------------------------------------

# beta1, beta2, beta3, alpha, eps
NUMBERS = {
    "adam": (0.9, 0.999, 0.0, 0.0, 1e-8),
    "lamb": (0.9, 0.999, 0.0, 0.0, 1e-8),
    "ademamix": (0.9, 0.999, 0.9999, 5.0, 1e-8),
    "momentum": (0.9, 0.0, 0.0, 0.0, 0.0),
    "lars": (0.9, 0.0, 0.0, 0.0, 0.0),
    "lion": (0.9, 0.99, 0.0, 0.0, 0.0),
    "rmsprop": (0.99, 0.0, 0.0, 0.0, 1e-8),
    "adagrad": (0.0, 0.0, 0.0, 0.0, 1e-10),
}
LR = 0.01


def oracle(
    name: str, g: Tensor, p: Tensor, moments: list[Tensor], step: int, decay: float, largest: float | None
) -> Tensor:
    """A step in float64, written from the papers; changes `moments`, returns the new parameter."""
    beta1, beta2, beta3, alpha, eps = NUMBERS[name]
    if name in ("momentum", "lars", "rmsprop", "adagrad"):
        g = g + decay * p
    if name in ("adam", "lamb", "ademamix"):
        moments[-1].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        moments[0].lerp_(g, 1 - beta1)
        second = (moments[-1] / (1 - beta2**step)).sqrt() + eps
        update = moments[0] / (1 - beta1**step)
        if name == "ademamix":
            moments[1].lerp_(g, 1 - beta3)
            update = update + alpha * moments[1]
        update = update / second
        measured = update * (1 - beta1**step) / math.sqrt(1 - beta2**step)
    elif name in ("momentum", "lars"):
        moments[0].mul_(beta1).add_(g) if step > 1 else moments[0].copy_(g)
        update = measured = moments[0]
    elif name == "lion":
        update = measured = moments[0].lerp(g, 1 - beta1).sign()
        moments[0].lerp_(g, 1 - beta2)
    else:
        moments[0].mul_(beta1 if name == "rmsprop" else 1).addcmul_(g, g, value=1 - beta1 if name == "rmsprop" else 1)
        update = measured = g / (moments[0].sqrt() + eps)
    scale = 1.0 if largest is None else min(1.0, largest / float(measured.norm()))
    decoupled = name in ("adam", "lamb", "ademamix", "lion")
    return p * (1 - LR * decay if decoupled else 1) - LR * scale * update


def zeros(name: str, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor | None]:
    lead = (2,) if name == "ademamix" else ()
    second = torch.zeros(shape, device=device) if OPTIMIZER_STATES[name] == 2 else None
    return torch.zeros((*lead, *shape), device=device), second


def tensor(number: float, device: torch.device) -> Tensor:
    return torch.tensor(number, dtype=torch.float32, device=device)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_optimizer_32bit_follows_float64(name: str, decay: float, device: torch.device) -> None:
    """Five steps, the third with half the gradient; the list form does the same to the bit."""
    shape, limited = (20, 30), name in ("lamb", "lars")
    p = normal(*shape).to(device)
    states = zeros(name, shape, device)
    unorm = torch.zeros(1, device=device) if limited else None
    max_unorm = 0.05 if limited else 0.0
    listed = [t if t is None else t.clone() for t in (p, *states, unorm)]
    exact = p.cpu().double()
    moments = [
        torch.zeros(shape, dtype=torch.float64) for _ in range(3 if name == "ademamix" else OPTIMIZER_STATES[name])
    ]
    for step in range(1, 6):
        g, scale = normal(*shape, seed=step, scale=0.1), 0.5 if step == 3 else 1.0
        norm = float(p.norm())
        exact = oracle(name, g.double() * scale, exact, moments, step, decay, max_unorm * norm if limited else None)
        numbers = (*NUMBERS[name], decay)
        optimizer.optimizer_update_32bit(
            *(name, g.to(device), p, *states, unorm, max_unorm, norm, *numbers, step, LR, scale)
        )
        assert relative_error(p, exact) <= 2e-6
        p_list, first, second, unorm_list = listed
        assert p_list is not None
        assert first is not None
        optimizer.optimizer_step_32bit(
            *(name, [g.to(device)], [p_list], [first], None if second is None else [second]),
            *(None if unorm_list is None else [unorm_list], tensor(step, device), tensor(LR, device)),
            *(max_unorm, *numbers, scale),
        )
        torch.testing.assert_close(p_list, p, rtol=0 if not limited else 1e-6, atol=0 if not limited else 1e-7)
    got = torch.cat([s.reshape(-1, *shape) for s in states if s is not None]).cpu()
    assert all(relative_error(m, want) <= 2e-6 for m, want in zip(got, moments, strict=True))


def quantized(name: str, shape: tuple[int, ...], blocksize: int | None, device: torch.device) -> dict[str, Any]:
    """Fresh 8-bit state, by the names of its arguments."""
    blocks = 1 if blocksize is None else -(-math.prod(shape) // blocksize)
    two = OPTIMIZER_STATES[name] == 2
    lead = (2,) if name == "ademamix" else ()
    return {
        "state1": torch.zeros((*lead, *shape), dtype=torch.uint8, device=device),
        "state2": torch.zeros(shape, dtype=torch.uint8, device=device) if two else None,
        "qmap1": dynamic_map(signed=name not in ("rmsprop", "adagrad"), device=device),
        "qmap2": dynamic_map(signed=False, device=device) if two else None,
        "scale1": torch.zeros((*lead, blocks), device=device),
        "scale2": torch.zeros(blocks, device=device) if two else None,
    }


def step_8bit(
    name: str, g: Tensor, p: Tensor, state: dict[str, Any], step: int, blocksize: int | None, **rest: Any
) -> None:
    update = optimizer.optimizer_update_8bit if blocksize is None else optimizer.optimizer_update_8bit_blockwise
    update(
        *(name, g, p, state["state1"], state["state2"], *NUMBERS[name], step, LR, state["qmap1"], state["qmap2"]),
        *(state["scale1"], state["scale2"], rest.get("decay", 0.0), 1.0, rest.get("skip_zeros", False)),
    )


@pytest.mark.parametrize("blocksize", [256, None])
@pytest.mark.parametrize("name", NUMBERS)
def test_optimizer_8bit_is_the_rule_between_two_codings(name: str, blocksize: int | None, device: torch.device) -> None:
    """Each of five steps, in float64 from the state as it was decoded; and the list form does the same to the bit."""
    shape = (20, 30)
    p, state = normal(*shape).to(device), quantized(name, shape, blocksize, device)
    size = blocksize or 600

    def decoded() -> list[Tensor]:
        parts = []
        for i in ("1", "2"):
            if state[f"state{i}"] is not None:
                for q, scale in zip(
                    state[f"state{i}"].reshape(-1, 600), state[f"scale{i}"].reshape(-1, -(-600 // size)), strict=True
                ):
                    values = state[f"qmap{i}"][q.long()].cpu().double()
                    parts.append((values * per_element(scale.cpu().double(), size, 600)).view(shape))
        return parts

    for step in range(1, 6):
        g = normal(*shape, seed=step, scale=0.1)
        moments, before = decoded(), p.cpu().double()
        exact = oracle(name, g.double(), before, moments, step, 0.1, None)
        listed = {k: v if v is None or k.startswith("qmap") else [v.clone()] for k, v in state.items()}
        p_list = [p.clone()]
        step_8bit(name, g.to(device), p, state, step, blocksize, decay=0.1)
        assert relative_error(p, exact) <= 2e-6
        for got, want in zip(decoded(), moments, strict=True):
            largest = per_element(scales(want, size).double(), size, 600).view(shape)
            assert bool(((got - want).abs() <= largest * 0.0352).all())  # half the widest gap of a map
        many = optimizer.optimizer_step_8bit if blocksize is None else optimizer.optimizer_step_8bit_blockwise
        many(
            *(name, [g.to(device)], p_list, listed["state1"], listed["state2"], listed["qmap1"], listed["qmap2"]),
            *(listed["scale1"], listed["scale2"], tensor(step, device), tensor(LR, device), *NUMBERS[name], 0.1, 1.0),
        )
        assert torch.equal(p_list[0], p)
        assert all(v is None or torch.equal(v[0], state[k]) for k, v in listed.items() if not k.startswith("qmap"))


@pytest.mark.parametrize("name", NUMBERS)
def test_nan_in_a_gradient_stays_where_it_is(name: str, device: torch.device) -> None:
    shape = (600,)
    g, other = normal(600, scale=0.1), normal(600, seed=1)
    broken = g.clone()
    broken[10] = math.nan
    results = []
    for gradient in (g, broken):
        p, states = other.clone().to(device), zeros(name, shape, device)
        limits = (torch.zeros(1, device=device), 0.0, 0.0)
        optimizer.optimizer_update_32bit(
            name, gradient.to(device), p, *states, *limits, *NUMBERS[name], 0.0, 1, LR, 1.0
        )
        coded, q = quantized(name, shape, 256, device), other.clone().to(device)
        step_8bit(name, gradient.to(device), q, coded, 1, 256)
        results.append(
            (
                p,
                q,
                states[0].reshape(-1, 600)[0],
                coded["scale1"].reshape(-1, 3)[0],
                coded["state1"].reshape(-1, 600)[0],
            )
        )
    elsewhere = torch.arange(600, device=device) != 10
    for clean, dirty in zip(*(r[:3] for r in results), strict=True):
        assert torch.equal(clean[elsewhere], dirty[elsewhere])
    (*_, clean_scale, clean_codes), (*_, scale, codes) = results
    assert scale.isnan().tolist() == [True, False, False]
    assert torch.equal(scale[1:], clean_scale[1:])
    assert torch.equal(codes[256:], clean_codes[256:])


@pytest.mark.parametrize("name", NUMBERS)
def test_skip_zeros_leaves_elements_alone(name: str, device: torch.device) -> None:
    shape = (600,)
    warm, g = normal(600, seed=1, scale=0.1).to(device), normal(600, seed=2, scale=0.1).to(device)
    g[:300:3], g[300:] = 0, 0  # some of the first two blocks, all of the third
    skipped = g == 0
    numbers = (*NUMBERS[name], 0.1)
    p, states = normal(600).to(device), zeros(name, shape, device)
    rest = (None, 0.0, 0.0, *numbers)
    optimizer.optimizer_update_32bit(name, warm, p, *states, *rest, 1, LR, 1.0)
    before = [t.clone() for t in (p, *states) if t is not None]
    optimizer.optimizer_update_32bit(name, g, p, *states, *rest, 2, LR, 1.0, True)
    for old, new in zip(before, (t for t in (p, *states) if t is not None), strict=True):
        assert torch.equal(old[..., skipped], new[..., skipped])
        assert not bool((old[..., ~skipped] == new[..., ~skipped]).all())
    p, state = normal(600).to(device), quantized(name, shape, 256, device)
    step_8bit(name, warm, p, state, 1, 256)
    old_p, old = p.clone(), {k: v if v is None else v.clone() for k, v in state.items()}
    step_8bit(name, g, p, state, 2, 256, decay=0.1, skip_zeros=True)
    assert torch.equal(p[skipped], old_p[skipped])
    assert bool((p[~skipped] != old_p[~skipped]).any())
    for i in ("1", "2"):
        if state[f"state{i}"] is not None:
            assert torch.equal(state[f"state{i}"][..., 512:], old[f"state{i}"][..., 512:])
            assert torch.equal(state[f"scale{i}"][..., 2:], old[f"scale{i}"][..., 2:])


def test_a_limit_on_the_norm_lets_a_zero_parameter_move(device: torch.device) -> None:
    p, m, unorm = (torch.zeros(n, device=device) for n in (50, 50, 1))
    g = normal(50).to(device)
    optimizer.optimizer_update_32bit("lars", g, p, m, None, unorm, 0.02, 0.0, *NUMBERS["lars"], 0.0, 1, LR, 1.0)
    assert torch.equal(p, -tensor(LR, device) * g)
    assert unorm.item() == pytest.approx(float(g.norm()), rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_parameters_that_are_not_contiguous(dtype: torch.dtype, device: torch.device) -> None:
    base, g = normal(30, 20, dtype=dtype).to(device), normal(20, 30, seed=1, dtype=dtype).to(device)
    straight, turned = base.t().contiguous(), base.clone().t()
    for p in (straight, turned):
        state = quantized("adam", (20, 30), 256, device)
        step_8bit("adam", g, p, state, 1, 256)
        if p is turned:
            state["state1"] = state["state1"].t().contiguous().t()
        step_8bit("adam", g, p, state, 2, 256)
    assert torch.equal(straight, turned)
    assert not torch.equal(straight, base.t())


@pytest.mark.parametrize("name", NUMBERS)
def test_list_forms_never_read_the_device(name: str) -> None:
    """Fake tensors have no data: reading one to the host raises."""
    device = torch.device("cpu")
    with FakeTensorMode():
        g, p, (first, second) = torch.empty(600), torch.empty(600), zeros(name, (600,), device)
        step, lr = torch.empty(()), torch.empty(())
        optimizer.optimizer_step_32bit(
            *(name, [g], [p], [first], None if second is None else [second], [torch.empty(1)], step, lr, 0.5),
            *(*NUMBERS[name], 0.1, 1.0, True),
        )
        for blocksize, many in ((256, optimizer.optimizer_step_8bit_blockwise), (None, optimizer.optimizer_step_8bit)):
            state = {
                k: v if v is None or k.startswith("qmap") else [v]
                for k, v in quantized(name, (600,), blocksize, device).items()
            }
            many(
                *(name, [g], [p], state["state1"], state["state2"], state["qmap1"], state["qmap2"]),
                *(state["scale1"], state["scale2"], step, lr, *NUMBERS[name], 0.1, 1.0, True),
            )
        statistics.percentile_clipping(g, torch.empty(100), 3)


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def each_thread_count() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    before = torch.get_num_threads()

    def results(compute: Callable[[], Any]) -> list[Any]:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(compute())
        return found

    yield results
    torch.set_num_threads(before)


def test_norms_do_not_depend_on_the_number_of_threads(each_thread_count: Callable[..., list[Any]]) -> None:
    x = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    found = each_thread_count(lambda: statistics.percentile_clipping(x, torch.ones(100), 1)[0])
    assert len({float(value) for value in found}) == 1
    assert abs(float(found[0]) / float(x.double().norm()) - 1) < 1e-6

    def lars() -> torch.Tensor:
        p, unorm = x.clone(), torch.zeros(1)
        scalars = (0.01, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        step, lr = torch.ones(()), torch.full((), 0.1)
        optimizer.optimizer_step_32bit("lars", [x], [p], [torch.zeros_like(x)], None, [unorm], step, lr, *scalars)
        return torch.cat([p, unorm])

    first, *others = each_thread_count(lars)
    assert all(torch.equal(first, other) for other in others)


def test_full_precision_lasts_until_the_last_thread_leaves() -> None:
    torch.set_float32_matmul_precision("medium")
    try:

        def setting() -> str:
            newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
            return torch.get_float32_matmul_precision() if newer is None else newer

        before = setting()
        first, second = full_fp32(), full_fp32()
        first.__enter__()
        full = setting()
        second.__enter__()
        first.__exit__(None, None, None)
        assert setting() == full != before
        second.__exit__(None, None, None)
        assert setting() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_empty_parameter_reports_the_norm_of_no_update() -> None:
    empty, unorm = torch.zeros(0), torch.full((1,), 7.0)
    scalars = (0.1, 1.0, 0.9, 0.999, 0.0, 0.0, 1e-8, 0.0, 1, 0.1, 1.0)
    optimizer.optimizer_update_32bit("lamb", empty, empty.clone(), empty.clone(), empty.clone(), unorm, *scalars)
    assert unorm.item() == 0
