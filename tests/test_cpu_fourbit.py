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
    sizes = [*range(70), 127, 129, 4095, 4097, blocksize - 1, blocksize + 1, 3 * blocksize + 17]
    for n in sizes:
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
