"""The native CPU kernels against torch's arithmetic, bit for bit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import _native, blockwise
from bnb_core.backends.cpu.levels import AVAILABLE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(params=AVAILABLE, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs once for each level of instructions that this CPU has."""
    current.append(request.param)
    yield request.param
    current.pop()


current: list[str] = []


def dequantize_blockwise(*args: object, **kwargs: object) -> Tensor:
    kernels = getattr(blockwise.kernels, current[-1])
    return kernels.dequantize_blockwise(*args, **kwargs)  # type: ignore[no-any-return]


def by_torch(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype) -> Tensor:
    padded = torch.full((256,), math.nan)
    padded[: code.numel()] = code
    block = torch.arange(A.numel()) // blocksize
    return (padded[A.flatten().long()] * absmax[block]).to(dtype).view(A.shape)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal bits, the sign of zeros included; a NaN may be any NaN."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    integers = torch.int32 if found.dtype == torch.float32 else torch.int16
    unlike = (found.contiguous().view(integers) != expected.contiguous().view(integers)) & ~expected.isnan()
    assert not unlike.any(), (found[unlike][:8], expected[unlike][:8])


def sample(n: int, blocksize: int, code_size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 7919 + blocksize)
    A = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=generator)
    absmax = torch.randn(-(-n // blocksize), generator=generator).abs()
    return A, absmax, torch.randn(code_size, generator=generator)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` as the kernel rounds them: each is an entry of a code, times one."""
    one = torch.ones(1)
    every = torch.arange(256, dtype=torch.uint8)
    padded = torch.nn.functional.pad(values, (0, -values.numel() % 256))
    parts = [dequantize_blockwise(every, one, code, 256, dtype) for code in padded.view(-1, 256)]
    return torch.cat(parts)[: values.numel()]


def from_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [1, 3, 64, 256, 4096, 2**62])
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 255, 4097])
def test_sizes_and_odd_tails(n: int, blocksize: int, dtype: torch.dtype) -> None:
    A, absmax, code = sample(n, blocksize)
    expected = by_torch(A, absmax, code, blocksize, dtype)
    assert_same_bits(dequantize_blockwise(A, absmax, code, blocksize, dtype), expected)


@pytest.mark.parametrize("shape", [(), (0, 5), (3, 0), (2, 3, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    A, absmax, code = sample(math.prod(shape), 4)
    A = A.view(shape)
    assert_same_bits(
        dequantize_blockwise(A, absmax, code, 4, torch.float32), by_torch(A, absmax, code, 4, torch.float32)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 16, 255])
def test_a_code_past_the_end_of_a_short_table_is_nan(size: int, dtype: torch.dtype) -> None:
    A, absmax, code = sample(1000, 64, size)
    found = dequantize_blockwise(A, absmax, code, 64, dtype)
    assert torch.equal(found.isnan(), A >= size)
    assert_same_bits(found, by_torch(A, absmax, code, 64, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_poisoned_block_is_nan_and_its_neighbours_are_not(dtype: torch.dtype) -> None:
    A, absmax, code = sample(4 * 64, 64)
    absmax[1], absmax[2] = math.nan, 0.0
    found = dequantize_blockwise(A, absmax, code, 64, dtype)
    assert found[64:128].isnan().all()
    assert_same_bits(found, by_torch(A, absmax, code, 64, dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_of_a_half_type_and_all_between(dtype: torch.dtype) -> None:
    """Every finite value, the midpoint to the next, and the fp32 neighbours of both: each tie, each carry."""
    below = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    above = torch.arange(-(2**15) + 1, 2**15 + 1).to(torch.int16).view(dtype).float()
    middle = ((below.double() + above.double()) / 2).float()
    exact = torch.cat([below, middle])
    bits = exact[exact.isfinite()].view(torch.int32)
    values = torch.cat([from_bits(bits + step) for step in (-1, 0, 1)])
    assert_same_bits(rounded(values, dtype), values.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_exponent_and_both_ends(dtype: torch.dtype) -> None:
    """All signs and exponents of fp32, subnormals, infinities and NaN included, with telling significands."""
    significands = torch.tensor([0, 1, 2**12, 2**12 + 1, 2**13, 2**15, 2**15 + 1, 2**16, 3 * 2**15, 2**22, 2**23 - 1])
    exponents = torch.arange(256) << 23
    positive = (exponents[:, None] + significands).flatten()
    values = from_bits(torch.cat([positive, positive - 2**31]))
    assert_same_bits(rounded(values, dtype), values.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_rounded_to_fp32_first(dtype: torch.dtype) -> None:
    """Products that are inexact, subnormal or too large in fp32, for all 256 codes and 4096 scales."""
    generator = torch.Generator().manual_seed(5)
    exponents = torch.randint(-100, 100, (4096,), generator=generator)
    absmax = torch.rand(4096, generator=generator) * torch.exp2(exponents.float())
    code = torch.randn(256, generator=generator) * torch.exp2(torch.randint(-60, 30, (256,), generator=generator))
    A = torch.arange(256, dtype=torch.uint8).repeat(4096)
    assert_same_bits(dequantize_blockwise(A, absmax, code, 256, dtype), by_torch(A, absmax, code, 256, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_contiguous_inputs(dtype: torch.dtype) -> None:
    A, absmax, code = sample(12 * 10, 16)
    expected = by_torch(A.view(12, 10).t(), absmax, code, 16, dtype)
    found = dequantize_blockwise(A.view(12, 10).t(), spread(absmax), spread(code), 16, dtype)
    assert_same_bits(found, expected)
    assert found.is_contiguous()


def spread(x: Tensor) -> Tensor:
    """`x` with a gap after every element."""
    return torch.stack([x, torch.full_like(x, math.nan)], 1)[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contiguous", [True, False])
def test_out_is_written_and_nothing_around_it(dtype: torch.dtype, contiguous: bool) -> None:
    A, absmax, code = sample(8 * 5, 16)
    A = A.view(8, 5)
    memory = torch.full((10, 5) if contiguous else (5, 10), 7.0, dtype=dtype)
    out = memory[1:9] if contiguous else memory.t()[1:9]
    version = out._version
    dequantize_blockwise(A, absmax, code, 16, dtype, out=out)
    assert_same_bits(out, by_torch(A, absmax, code, 16, dtype))
    around = memory if contiguous else memory.t()
    assert (around[0] == 7).all()
    assert (around[9] == 7).all()
    assert out._version >= version


def test_out_that_overlaps_an_input() -> None:
    A, absmax, code = sample(64, 1)
    expected = by_torch(A, absmax, code, 1, torch.float32)
    dequantize_blockwise(A, absmax[:64], code, 1, torch.float32, out=absmax[:64])
    assert_same_bits(absmax, expected)


def test_inputs_are_not_written() -> None:
    inputs = sample(1000, 64, 100)
    before = [x.clone() for x in inputs]
    dequantize_blockwise(*inputs, 64, torch.float16)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_an_unknown_dtype_is_an_error_that_lists_the_known(level: str) -> None:
    code = torch.zeros(256)
    with pytest.raises(ValueError, match="unknown dtype 'float64', known are float32, float16, bfloat16"):
        getattr(_native, level).dequantize_blockwise(0, 0, code.data_ptr(), 256, 64, 0, "float64", 0, 1)


def test_the_op_runs_this_kernel_on_cpu(level: str) -> None:
    from bnb_core.ops_registry import force, kernel_counts, reset_kernel_counts

    A, absmax, code = sample(1000, 64)
    reset_kernel_counts()
    with force(f"cpu/{level}"):
        found = torch.ops.bnb_core.dequantize_blockwise(A, absmax, code, 64, torch.bfloat16)
    assert kernel_counts() == {("dequantize_blockwise", "cpu", f"cpu/{level}"): 1}
    with force("reference"):
        assert_same_bits(found, torch.ops.bnb_core.dequantize_blockwise(A, absmax, code, 64, torch.bfloat16))


def test_the_gil_is_released() -> None:
    """The main thread runs Python in the first half of another thread's long call, not only once it is over."""
    n = 1 << 25
    A, absmax, code = torch.zeros(n, dtype=torch.uint8), torch.ones(1), torch.ones(256)
    out = torch.zeros(n, dtype=torch.float16)
    call: list[float] = []

    def work() -> None:
        call.append(time.perf_counter())
        dequantize_blockwise(A, absmax, code, n, torch.float16, out=out)
        call.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    ticks = []
    while len(call) < 2:
        ticks.append(time.perf_counter())
    thread.join()
    start, end = call
    assert any(start + 0.1 * (end - start) < tick < (start + end) / 2 for tick in ticks)
