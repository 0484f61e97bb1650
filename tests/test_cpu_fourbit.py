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
from bnb_core.ops_registry.codebooks import decision_table, four_bit
from bnb_core.ops_registry.formats import BLOCKSIZES, FLOATS, QUANT_TYPES, STORAGES

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import _native, fourbit
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
    shape = (2057, 8209)
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


# -- embedding_4bit --------------------------------------------------------------------------------------------------


def table_sample(shape: tuple[int, int], blocksize: int, nested: bool, code_size: int = 256) -> tuple[Any, ...]:
    """B, shapeB and absmax of a random table; then its nested statistics, or None for each."""
    random = generator(shape[0] * 31 + shape[1])
    packed, absmax = packed_sample(math.prod(shape), blocksize)
    if not nested:
        return packed, shape, absmax, (None, None, None)
    blocks = absmax.numel()
    codes = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=random)
    statistics = (codes, torch.randn(code_size, generator=random), torch.tensor(0.37))
    return packed, shape, torch.randn(-(-blocks // 256), generator=random).abs(), statistics


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_embedding_rows_that_begin_anywhere(kernels: Any, quant_type: str, dtype: torch.dtype, nested: bool) -> None:
    """Odd rows begin within a byte, short ones share a block, long ones go over many."""
    for columns in (1, 3, 16, 33, 63, 64, 257, 4097):
        for blocksize in (16, 64):
            rows = 70 if columns < 100 else 6
            B, shape, absmax, statistics = table_sample((rows, columns), blocksize, nested)
            indices = torch.arange(rows).flip(0).view(-1, 1).expand(-1, 2)
            args = (indices, B, shape, absmax, blocksize, quant_type, dtype, *statistics)
            found = kernels.embedding_4bit(*args)
            assert_same_bits(found, reference.embedding_4bit(*args))
            assert found.is_contiguous()


@pytest.mark.parametrize("dtype", FLOATS)
def test_embedding_nested_scales_of_a_short_codebook(kernels: Any, dtype: torch.dtype) -> None:
    """A code past the end of the codebook makes its block NaN, and no other."""
    B, shape, absmax, statistics = table_sample((40, 64), 16, True, 100)
    args = (torch.arange(40), B, shape, absmax, 16, "nf4", dtype, *statistics)
    found = kernels.embedding_4bit(*args)
    assert torch.equal(found.isnan().view(-1, 16).all(1), statistics[0] >= 100)
    assert_same_bits(found, reference.embedding_4bit(*args))


@pytest.mark.parametrize("nested", [False, True])
def test_embedding_indices_of_any_kind(kernels: Any, nested: bool) -> None:
    B, shape, absmax, statistics = table_sample((50, 33), 32, nested)
    wide = torch.randint(0, 50, (4, 6), generator=generator(9))
    empty = torch.empty(0, 3, dtype=torch.int64)
    for indices in (wide, wide.int(), wide.t(), spread(wide.int()), wide[0, 0], empty, torch.tensor([49, 0, 49])):
        args = (indices, B, shape, absmax, 32, "fp4", torch.float16, *statistics)
        assert_same_bits(kernels.embedding_4bit(*args), reference.embedding_4bit(*args))


@pytest.mark.parametrize("storage", STORAGES)
def test_embedding_storages_and_strides(kernels: Any, storage: torch.dtype) -> None:
    B, shape, absmax, statistics = table_sample((20, 36), 16, True)
    stored = spread(B.view(-1).view(storage).view(-1, 1))
    expected = reference.embedding_4bit(torch.arange(20), B, shape, absmax, 16, "nf4", torch.float32, *statistics)
    strided = (spread(statistics[0]), spread(statistics[1]), statistics[2].view(1, 1))
    found = kernels.embedding_4bit(torch.arange(20), stored, shape, absmax, 16, "nf4", torch.float32, *strided)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [-1, 50, -(2**31), 2**31 - 1])
def test_embedding_index_outside_is_an_error_that_names_it(kernels: Any, bad: int, dtype: torch.dtype) -> None:
    B, shape, absmax, _ = table_sample((50, 32), 32, False)
    indices = torch.tensor([[0, 49], [bad, 3]], dtype=dtype)
    message = rf"embedding_4bit: index {bad} at position 2 of indices, expected 0 to 49 for shapeB \(50, 32\)"
    with pytest.raises(IndexError, match=message):
        kernels.embedding_4bit(indices, B, shape, absmax, 32, "nf4", torch.float32)
    with pytest.raises(IndexError, match="expected 0 to 49"):
        kernels.embedding_4bit(indices, B[:0], (50, 0), absmax[:0], 32, "nf4", torch.float32)


def test_embedding_is_the_same_on_any_number_of_threads(kernels: Any) -> None:
    B, shape, absmax, statistics = table_sample((3001, 129), 64, True)
    indices = torch.randint(0, 3001, (5000,), generator=generator(4))
    args = (indices, B, shape, absmax, 64, "nf4", torch.bfloat16, *statistics)
    expected = reference.embedding_4bit(*args)
    for count in (1, 2, 3):
        with threads(count):
            assert_same_bits(kernels.embedding_4bit(*args), expected)


@pytest.mark.parametrize("name", ["quantize_4bit", "dequantize_4bit", "embedding_4bit"])
def test_an_unknown_type_is_an_error_that_lists_the_known(name: str) -> None:
    calls: dict[str, tuple[Any, ...]] = {
        "quantize_4bit": (0, "float32", 0, 64, "int4", 0, 0, 0, 1),
        "dequantize_4bit": (0, 0, 64, "int4", 0, "float32", 0, 1),
        "embedding_4bit": (0, True, 0, 0, 0, 0, 0, 64, "int4", "float32", 0, 0, 0, 0, 0, 1),
    }
    with pytest.raises(ValueError, match="unknown quant_type 'int4', known are nf4, fp4"):
        getattr(getattr(_native, AVAILABLE[0]), name)(*calls[name])
