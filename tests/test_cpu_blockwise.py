"""The native blockwise kernels of the CPU against the reference and torch's arithmetic, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_core.backends.reference import blockwise as reference
from bnb_core.ops_registry.codebooks import decision_table, dynamic_map, four_bit, fp8_map, linear_map, normal_map
from bnb_core.ops_registry.formats import FLOATS as DTYPES

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import blockwise
from bnb_core.backends.cpu.levels import AVAILABLE

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(params=AVAILABLE, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs once for each level of instructions that this CPU has."""
    current.append(request.param)
    yield request.param
    current.pop()


current: list[str] = []


def kernels() -> Any:
    return getattr(blockwise.kernels, current[-1])


def dequantize_blockwise(*args: object, **kwargs: object) -> Tensor:
    return kernels().dequantize_blockwise(*args, **kwargs)  # type: ignore[no-any-return]


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
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 255, 1023, 1026, 1027, 4097])
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


# ---------------------------------------------------------------------------------------------------- quantize


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n * 31 + seed))


CODES = {
    "dynamic": dynamic_map(signed=True),
    "unsigned dynamic": dynamic_map(signed=False),
    "dynamic of 7 bits": dynamic_map(True, 6, 7),
    "linear": linear_map(signed=True),
    "unsigned linear": linear_map(signed=False),
    "fp8": fp8_map(),
    "normal": normal_map(),
    "nf4": four_bit("nf4"),
    "fp4": four_bit("fp4"),
    "random": random(256),
    "random, sorted": random(200).sort().values,
    "shuffled dynamic": dynamic_map()[torch.randperm(256, generator=torch.Generator().manual_seed(0))],
    "nearly dynamic": torch.cat([dynamic_map()[:200], dynamic_map()[200:] * (1 + 2.0**-18)]),
    "subnormal": random(256) * 1e-40,
    "a boundary at 0": torch.tensor([-1.0, -0.25, 0.25, 1.0]),
    "beyond 1": torch.tensor([-3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3e38]),
    "duplicates": torch.tensor([0.0, 1.0, -1.0, 0.0, 0.5, 0.5, -0.0]),
    "one value": torch.tensor([0.3]),
    "two values": torch.tensor([1.0, 0.0]),
}


def assert_quantizes_as_the_reference(A: Tensor, code: Tensor, blocksize: int) -> None:
    q, absmax = kernels().quantize_blockwise(A, code, blocksize)
    expected_q, expected_absmax = reference.quantize_blockwise(A, code, blocksize)
    assert q.dtype == torch.uint8
    assert torch.equal(q, expected_q)
    assert torch.equal(absmax.view(torch.int32), expected_absmax.view(torch.int32))


def numbers_around(code: Tensor) -> Tensor:
    """Numbers of [-1, 1]: each boundary of a code and 20 fp32 numbers on either side, every exponent, both zeros."""
    boundaries = decision_table(code).boundaries
    bits = boundaries[boundaries.abs() <= 1].view(torch.int32)
    near = (bits[:, None] + torch.arange(-20, 21, dtype=torch.int32)).flatten().view(torch.float32)
    exponents = torch.arange(128, dtype=torch.int32) << 23
    grid = (exponents[:, None] + torch.arange(0, 1 << 23, 40503, dtype=torch.int32)).flatten().view(torch.float32)
    numbers = torch.cat([near, grid, -grid, torch.tensor([0.0, -0.0, 1.0, -1.0])])
    return numbers[numbers.abs() <= 1]


@pytest.mark.parametrize("name", CODES)
def test_the_nearest_code_is_exact(name: str) -> None:
    """In a block whose absmax is 1."""
    numbers = numbers_around(CODES[name])
    assert_quantizes_as_the_reference(torch.cat([numbers, torch.ones(1)]), CODES[name], numbers.numel() + 1)


@pytest.mark.parametrize("name", ["dynamic", "unsigned dynamic", "linear", "fp4", "random"])
def test_the_nearest_code_of_few_numbers(name: str) -> None:
    for part in numbers_around(CODES[name])[:20000].split(501):
        assert_quantizes_as_the_reference(torch.cat([part, torch.ones(1)]), CODES[name], 600)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [1, 3, 64, 100, 256, 4096, 2**62])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 255, 4097, 20000])
def test_quantize_sizes_and_odd_tails(n: int, blocksize: int, dtype: torch.dtype) -> None:
    for name in ("dynamic", "linear", "nf4"):
        assert_quantizes_as_the_reference(random(n).to(dtype), CODES[name], blocksize)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [64, 70000, 2**20])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_quantize_on_any_number_of_threads(blocksize: int, dtype: torch.dtype, count: int) -> None:
    """Blocks on threads, and threads within a block."""
    A = random(300001).to(dtype)
    A[123456] = 60000.0
    with threads(count):
        assert_quantizes_as_the_reference(A, CODES["dynamic"], blocksize)


@pytest.mark.parametrize("blocksize", [64, 150000])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["dynamic", "unsigned dynamic", "linear", "random", "fp4"])
def test_a_block_with_nan_or_inf(name: str, value: float, blocksize: int) -> None:
    A = random(200001)
    A[70], A[200000] = value, 0.5
    assert_quantizes_as_the_reference(A, CODES[name], blocksize)
    _, absmax = kernels().quantize_blockwise(A, CODES[name], blocksize)
    assert int(absmax.view(torch.int32)[70 // blocksize]) == 0x7FC00000
    assert int(absmax.isnan().sum()) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["dynamic", "unsigned dynamic", "fp8", "a boundary at 0"])
def test_zero_blocks_and_tiny_and_huge_ones(name: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    tiny = torch.finfo(dtype).smallest_normal
    blocks = [torch.zeros(64), -torch.zeros(64), random(64) * tiny / 8, random(64).clamp(-1, 1) * largest, random(40)]
    A = torch.cat(blocks).to(dtype)
    assert_quantizes_as_the_reference(A, CODES[name], 64)
    assert kernels().quantize_blockwise(A, CODES[name], 64)[1][:2].tolist() == [0, 0]


def test_quantize_non_contiguous_inputs() -> None:
    A, code = random(40 * 33).view(40, 33).t(), spread(CODES["dynamic"])
    assert_quantizes_as_the_reference(A, code, 64)
    assert kernels().quantize_blockwise(A, code, 64)[0].is_contiguous()


@pytest.mark.parametrize("contiguous", [True, False])
def test_quantize_into_out(contiguous: bool) -> None:
    A, code = random(8 * 5).view(8, 5), CODES["dynamic"]
    memory, scales = torch.full((12, 5), 7, dtype=torch.uint8), torch.full((12,), 7.0)
    out = (memory[2:10], scales[1:4]) if contiguous else (memory.view(5, 12).t()[2:10], scales.view(4, 3)[:3, 1])
    q, absmax = kernels().quantize_blockwise(A, code, 16, out=out)
    assert q is out[0]
    assert absmax is out[1]
    expected = reference.quantize_blockwise(A, code, 16)
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1], expected[1])
    assert int((memory == 7).sum()) - int((expected[0] == 7).sum()) == 20
    assert int((scales == 7).sum()) == 9


def test_quantize_into_out_that_overlaps_an_input() -> None:
    A, code = random(64), CODES["dynamic"].clone()
    expected = reference.quantize_blockwise(A, code, 1)
    q = torch.empty(64, dtype=torch.uint8)
    kernels().quantize_blockwise(A, code, 1, out=(q, code[:64]))
    assert torch.equal(q, expected[0])
    assert torch.equal(code[:64], expected[1])


def test_quantize_does_not_write_its_inputs() -> None:
    A, code = random(1000), CODES["shuffled dynamic"].clone()
    before = A.clone(), code.clone()
    kernels().quantize_blockwise(A, code, 64)
    assert torch.equal(A, before[0])
    assert torch.equal(code, before[1])
