"""The native 4-bit kernels of the CPU against the reference, bit for bit."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_core.backends.reference import fourbit as reference
from bnb_core.backends.reference.blockwise import decision_table
from bnb_core.ops_registry.codebooks import four_bit
from bnb_core.ops_registry.formats import BLOCKSIZES, FLOATS, QUANT_TYPES, STORAGES

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import fourbit
from bnb_core.backends.cpu.levels import AVAILABLE

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=AVAILABLE)
def kernels(request: pytest.FixtureRequest) -> Any:
    """Each test that asks for them runs once for each level of instructions that this CPU has."""
    return getattr(fourbit.kernels, request.param)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal bits, the sign of zeros included; a NaN may be any NaN."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype in FLOATS:
        assert torch.equal(found.isnan(), expected.isnan())
        integers = torch.int32 if found.dtype == torch.float32 else torch.int16
        known = ~expected.isnan()
        found, expected = found.contiguous().view(integers)[known], expected.contiguous().view(integers)[known]
    assert torch.equal(found, expected)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def packed_sample(n: int, blocksize: int) -> tuple[Tensor, Tensor]:
    """Random bytes and scales of `n` elements."""
    random = generator(n * 7919 + blocksize)
    packed = torch.randint(0, 256, (-(-n // 2), 1), dtype=torch.uint8, generator=random)
    return packed, torch.randn(-(-n // blocksize), generator=random).abs()


def sizes(blocksize: int) -> list[int]:
    """Element counts: every tail of the vectors, and of blocks."""
    tails = range(70) if blocksize == 64 else (0, 1, 2, 15, 17, 33, 63)
    return [*tails, blocksize - 1, blocksize, blocksize + 1, 3 * blocksize + 17, 33 * blocksize + 47]


def spread(x: Tensor) -> Tensor:
    """`x` with a gap after every element."""
    return torch.stack([x, torch.full_like(x, 77)], -1)[..., 0]


def test_tables_of_native_code_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "ci" / "native_tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# -- dequantize_4bit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_dequantize_sizes_and_odd_tails(kernels: Any, blocksize: int, quant_type: str, dtype: torch.dtype) -> None:
    for n in sizes(blocksize):
        A, absmax = packed_sample(n, blocksize)
        args = (A, absmax, blocksize, quant_type, (n,), dtype)
        assert_same_bits(kernels.dequantize_4bit(*args), reference.dequantize_4bit(*args))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_dequantize_special_scales(kernels: Any, quant_type: str, dtype: torch.dtype) -> None:
    """Every code with scales that are zero, not finite, subnormal, huge, and just about a boundary of the type."""
    scales = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1e-40, 3e38, 65504.0, 65519.9, 65520.0, 6e-8, 1e-7, 1.0]
    random = generator(3)
    absmax = torch.cat([torch.tensor(scales), torch.randn(5000, generator=random).exp2() ** 12])
    A = torch.arange(256, dtype=torch.uint8).repeat(absmax.numel())
    args = (A, absmax, 512, quant_type, (absmax.numel(), 512), dtype)
    assert_same_bits(kernels.dequantize_4bit(*args), reference.dequantize_4bit(*args))


@pytest.mark.parametrize("storage", STORAGES)
def test_dequantize_storages_strides_and_shapes(kernels: Any, storage: torch.dtype) -> None:
    shape = (12, 5, 20)
    A, absmax = packed_sample(math.prod(shape), 32)
    stored = A.view(-1).view(storage).view(-1, 1)
    expected = reference.dequantize_4bit(A, absmax, 32, "nf4", shape, torch.bfloat16)
    for packed in (stored, stored.t(), stored.view(-1), stored.view(2, -1).t().contiguous().t(), spread(stored)):
        found = kernels.dequantize_4bit(packed, spread(absmax), 32, "nf4", shape, torch.bfloat16)
        assert_same_bits(found, expected)
        assert found.is_contiguous()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_dequantize_out_is_written_and_nothing_around_it(kernels: Any, dtype: torch.dtype, contiguous: bool) -> None:
    A, absmax = packed_sample(8 * 5, 16)
    memory = torch.full((10, 5) if contiguous else (5, 10), 7.0, dtype=dtype)
    around = memory if contiguous else memory.t()
    args = (A, absmax, 16, "fp4", (8, 5), dtype)
    assert kernels.dequantize_4bit(*args, out=around[1:9]) is not None
    assert_same_bits(around[1:9].contiguous(), reference.dequantize_4bit(*args))
    assert (around[[0, 9]] == 7).all()


def test_dequantize_out_that_overlaps_an_input(kernels: Any) -> None:
    A, absmax = packed_sample(64 * 16, 16)
    expected = reference.dequantize_4bit(A[:32], absmax[:4], 16, "nf4", (4, 16), torch.float32)
    kernels.dequantize_4bit(A[:32], absmax[:4], 16, "nf4", (4, 16), torch.float32, out=absmax.view(4, 16))
    assert_same_bits(absmax.view(4, 16), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dequantize_large_is_the_same_on_any_number_of_threads(kernels: Any, dtype: torch.dtype) -> None:
    """Also the way around the cache that large results take."""
    shape = (1031, 4097)
    A, absmax = packed_sample(math.prod(shape), 64)
    args = (A, absmax, 64, "nf4", shape, dtype)
    expected = reference.dequantize_4bit(*args)
    for count in (1, 2, 3):
        with threads(count):
            assert_same_bits(kernels.dequantize_4bit(*args), expected)


# -- quantize_4bit ---------------------------------------------------------------------------------------------------


def assert_quantizes_as_reference(kernels: Any, A: Tensor, blocksize: int, quant_type: str) -> None:
    args = (A, blocksize, quant_type, torch.uint8)
    for found, expected in zip(kernels.quantize_4bit(*args), reference.quantize_4bit(*args), strict=True):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_quantize_sizes_and_odd_tails(kernels: Any, blocksize: int, quant_type: str, dtype: torch.dtype) -> None:
    for n in sizes(blocksize):
        A = torch.randn(n, generator=generator(n)).to(dtype)
        assert_quantizes_as_reference(kernels, A, blocksize, quant_type)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_quantize_on_and_beside_every_boundary(kernels: Any, quant_type: str) -> None:
    """Numbers a few steps around each boundary, with an absmax that is 1, a power of two, and neither."""
    boundaries = decision_table(four_bit(quant_type), merge_equals=False).boundaries
    steps = torch.arange(-3, 4, dtype=torch.int32)
    t = (boundaries.view(torch.int32)[:, None] + steps).view(torch.float32).flatten()
    t = torch.cat([t[t.abs() < 1], torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38])])
    rows = torch.cat([torch.ones(t.numel(), 1), t[:, None].expand(-1, 15)], 1)
    for scale in (1.0, 2.0**-100, 2.0**100, 0.7, 3.3e-5, 1e20):
        for blocksize in (16, 64):
            assert_quantizes_as_reference(kernels, rows * scale, blocksize, quant_type)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_quantize_every_scale(kernels: Any, quant_type: str) -> None:
    """All exponents: subnormal scales, and those whose inverse is no normal number, are divided by."""
    random = generator(11)
    exponents = torch.arange(-149, 128).repeat_interleave(64)
    A = torch.rand(exponents.numel(), 16, generator=random) * 2 - 1
    A = torch.ldexp(A.double(), exponents[:, None].double()).float()
    for limit in (2.0**-126, 2.0**126):
        ends = torch.tensor([limit]).view(torch.int32) + torch.arange(-2, 3, dtype=torch.int32)
        A = torch.cat([A, torch.cat([ends.view(torch.float32)[:, None], A[:5, 1:] * limit], 1)])
    for blocksize in (16, 64, 256):
        assert_quantizes_as_reference(kernels, A, blocksize, quant_type)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", [16, 64, 4096])
def test_quantize_special_values_at_every_place(
    kernels: Any, blocksize: int, quant_type: str, dtype: torch.dtype
) -> None:
    """A NaN or an infinity poisons its own block alone; zeros are zeros."""
    places = range(blocksize) if blocksize < 4096 else (0, 1, 63, 64, 2047, 4095)
    for special in (math.nan, math.inf, -math.inf, -math.nan):
        A = torch.randn(len(places), 2, blocksize, generator=generator(5)).to(dtype)
        for row, place in zip(A, places, strict=True):
            row[0, place] = special
        absmax = kernels.quantize_4bit(A, blocksize, quant_type, torch.uint8)[1]
        assert absmax.view(-1, 2)[:, 0].isnan().all()
        assert absmax.view(-1, 2)[:, 1].isfinite().all()
        assert_quantizes_as_reference(kernels, A, blocksize, quant_type)
    zeros = torch.tensor([0.0, -0.0], dtype=dtype).repeat(3 * blocksize)
    assert_quantizes_as_reference(kernels, zeros[:-1], blocksize, quant_type)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_quantize_fills_the_storage_unit_with_zeros(kernels: Any, quant_type: str, storage: torch.dtype) -> None:
    for n in (0, 1, 2, 3, 5, 7, 8, 63, 64, 65, 129, 1000):
        A = torch.randn(n, generator=generator(n))
        args = (A, 64, quant_type, storage)
        found, expected = kernels.quantize_4bit(*args), reference.quantize_4bit(*args)
        assert found[0].dtype == storage
        assert found[0].shape == expected[0].shape
        assert torch.equal(found[0].view(-1).view(torch.uint8), expected[0].view(-1).view(torch.uint8))
        assert torch.equal(found[1], expected[1])


def test_quantize_strided_input_is_not_written(kernels: Any) -> None:
    A = torch.randn(30, 70, generator=generator(1))
    before = A.clone()
    assert_quantizes_as_reference(kernels, A.t(), 64, "nf4")
    assert_quantizes_as_reference(kernels, A[:, 3:], 64, "nf4")
    assert torch.equal(A, before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_quantize_large_is_the_same_on_any_number_of_threads(kernels: Any, dtype: torch.dtype) -> None:
    A = torch.randn(1031, 1021, generator=generator(2)).to(dtype)
    for count in (1, 2, 3):
        with threads(count):
            assert_quantizes_as_reference(kernels, A, 64, "nf4")
