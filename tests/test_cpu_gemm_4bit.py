"""The native 4-bit product of the CPU against float64, at each level of instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_core.backends.reference import fourbit as reference
from bnb_core.ops_registry.codebooks import dynamic_map
from bnb_core.ops_registry.formats import BLOCKSIZES, FLOATS, NESTED_BLOCKSIZE, QUANT_TYPES, STORAGES

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import fourbit
from bnb_core.backends.cpu.levels import AVAILABLE

# Largest error over the largest result. Of a half type its own rounding: the kernels add nothing to it that shows.
BOUNDS = {torch.float32: 1e-6, torch.float16: 2.0**-11 + 1e-6, torch.bfloat16: 2.0**-8 + 1e-6}

# Few rows and one tile, tiles of unequal height, the last tile of a block of 252 rows and the first of the next.
ROWS = [1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 17, 251, 252, 253, 300]


@pytest.fixture(params=AVAILABLE)
def gemm_4bit(request: pytest.FixtureRequest) -> Any:
    """Each test that asks for it runs once for each level of instructions that this CPU has."""
    return getattr(fourbit.kernels, request.param).gemm_4bit


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(dtype)


class Weight:
    """A weight [N, K] of random codes and scales: the arguments of the operator, and its values in float64."""

    def __init__(self, N: int, K: int, blocksize: int, quant_type: str = "nf4", nested: bool = False) -> None:
        blocks = -(-N * K // blocksize)
        self.packed = torch.randint(0, 256, (-(-N * K // 2), 1), dtype=torch.uint8, generator=generator(2))
        self.absmax = torch.rand(blocks, generator=generator(3)) + 0.5
        self.format = ((N, K), blocksize, quant_type)
        self.nested: tuple[Tensor | None, ...] = (None, None, None)
        scales = self.absmax
        if nested:
            self.absmax = self.absmax[: -(-blocks // NESTED_BLOCKSIZE)]
            codes = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator(4))
            self.nested = (codes, dynamic_map(signed=True), torch.tensor(1.5))
            scales = reference.block_scales(self.absmax, *self.nested)
        self.exact = reference.dequantize_4bit(
            self.packed, scales, blocksize, quant_type, (N, K), torch.float32
        ).double()

    def args(self, bias: Tensor | None = None) -> tuple[Any, ...]:
        """All arguments but A."""
        shape, blocksize, quant_type = self.format
        return self.packed, shape, self.absmax, blocksize, quant_type, bias, *self.nested


def assert_is_product(found: Tensor, A: Tensor, weight: Weight, bias: Tensor | None = None) -> None:
    expected = A.double() @ weight.exact.t()
    if bias is not None:
        expected = expected + bias.double()
    assert (found.dtype, found.shape) == (A.dtype, expected.shape)
    assert found.is_contiguous()
    if found.numel():
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error <= BOUNDS[A.dtype], f"relative error {error:.3g}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [1, 2, 4, 9])
@pytest.mark.parametrize(
    ("N", "K", "blocksize"),
    [
        (16, 64, 64),  # whole strips and steps
        (35, 96, 32),  # a strip that is not whole
        (7, 48, 16),  # a step that is not whole
        (33, 512, 16),  # two blocks in a step
        (40, 1536, 512),  # blocks longer than a panel
        (18, 8192, 4096),
        (20, 96, 64),  # blocks that straddle rows, in the same way for every other row
        (20, 200, 64),
        (19, 77, 16),  # rows that begin within a byte
        (3, 1031, 128),
        (2, 1, 16),
        (1, 3, 4096),
    ],
)
def test_is_the_float64_product(gemm_4bit: Any, M: int, N: int, K: int, blocksize: int, dtype: torch.dtype) -> None:
    weight, A = Weight(N, K, blocksize), normal(M, K, dtype=dtype)
    assert_is_product(gemm_4bit(A, *weight.args()), A, weight)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 17, 4096), (4, 17, 4096), (2, 130, 510)])
def test_every_format(gemm_4bit: Any, quant_type: str, blocksize: int, nested: bool, M: int, N: int, K: int) -> None:
    weight, A = Weight(N, K, blocksize, quant_type, nested), normal(M, K)
    assert_is_product(gemm_4bit(A, *weight.args()), A, weight)


@pytest.mark.parametrize("bias_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("M", [1, 3])
def test_bias_of_any_dtype(gemm_4bit: Any, M: int, dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    weight, A, bias = Weight(41, 320, 64), normal(M, 320, dtype=dtype), normal(41, dtype=bias_dtype, seed=9)
    assert_is_product(gemm_4bit(A, *weight.args(bias * 20)), A, weight, bias * 20)


@pytest.mark.parametrize("shape", [(0, 96), (2, 0, 96), (96,), (2, 3, 96)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_shapes_of_activations(gemm_4bit: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
    weight, A = Weight(18, 96, 32), normal(*shape, dtype=dtype)
    assert_is_product(gemm_4bit(A, *weight.args()), A, weight)


@pytest.mark.parametrize(("N", "K"), [(0, 64), (9, 0), (0, 0)])
@pytest.mark.parametrize("M", [0, 1, 5])
def test_empty_weights(gemm_4bit: Any, M: int, N: int, K: int) -> None:
    weight, A, bias = Weight(N, K, 64), normal(M, K), normal(N, seed=7)
    assert torch.equal(gemm_4bit(A, *weight.args(bias)), bias.expand(M, N))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("K", "blocksize"), [(576, 64), (600, 64), (577, 32)])
def test_a_row_has_the_same_bits_among_few_rows_and_among_many(
    gemm_4bit: Any, K: int, blocksize: int, dtype: torch.dtype
) -> None:
    """Up to five rows are added up in another order than more."""
    weight, A, bias = Weight(37, K, blocksize), normal(max(ROWS), K, dtype=dtype), normal(37)
    alone = torch.cat([gemm_4bit(row, *weight.args(bias)) for row in A.split(1)])
    together = gemm_4bit(A, *weight.args(bias))
    assert_is_product(alone, A, weight, bias)
    for M in ROWS:
        expected = alone if M <= 5 else together
        assert torch.equal(gemm_4bit(A[:M], *weight.args(bias)), expected[:M]), M


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("M", [1, 2, 8, 260])
def test_the_same_bits_on_any_number_of_threads(gemm_4bit: Any, M: int, nested: bool, dtype: torch.dtype) -> None:
    weight, A = Weight(2056, 640, 64, nested=nested), normal(M, 640, dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4, 4):
            torch.set_num_threads(count)
            results.append(gemm_4bit(A, *weight.args()))
    finally:
        torch.set_num_threads(before)
    assert_is_product(results[0], A, weight)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("M", [1, 4])
@pytest.mark.parametrize(("K", "blocksize"), [(128, 64), (48, 16), (80, 32), (33, 32)])
def test_a_poisoned_scale_stays_in_its_columns(gemm_4bit: Any, K: int, blocksize: int, M: int, value: float) -> None:
    weight, A = Weight(40, K, blocksize, "fp4"), normal(M, K)
    block = 17
    clean = gemm_4bit(A, *weight.args())
    weight.absmax[block] = value
    found = gemm_4bit(A, *weight.args())
    columns = range(block * blocksize // K, -(-(block + 1) * blocksize // K))
    touched = torch.tensor([n in columns for n in range(40)])
    assert not found[:, touched].isfinite().any()
    assert torch.equal(found[:, ~touched], clean[:, ~touched])


@pytest.mark.parametrize("M", [3, 20])
def test_a_poisoned_row_stays_alone(gemm_4bit: Any, M: int) -> None:
    weight, A = Weight(40, 192, 64), normal(M, 192)
    clean = gemm_4bit(A, *weight.args())
    A[1, 100] = math.nan
    found = gemm_4bit(A, *weight.args())
    assert found[1].isnan().all()
    assert torch.equal(found[torch.arange(M) != 1], clean[torch.arange(M) != 1])


def test_values_that_a_half_type_does_not_have_become_infinite(gemm_4bit: Any) -> None:
    weight, A = Weight(16, 256, 64), normal(2, 256, dtype=torch.float16) * 1000
    weight.absmax *= 1000
    found = gemm_4bit(A, *weight.args())
    assert found.isinf().any()
    assert torch.equal(found.float(), gemm_4bit(A.float(), *weight.args()).half().float())


def strided(x: Tensor) -> Tensor:
    """`x` with a gap after every element."""
    return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("M", [1, 7])
def test_strided_inputs(gemm_4bit: Any, M: int, nested: bool) -> None:
    weight, A, bias = Weight(24, 128, 32, nested=nested), normal(M, 128), normal(24)
    expected = gemm_4bit(A, *weight.args(bias))
    spread = [strided(arg) if isinstance(arg, Tensor) and arg.ndim else arg for arg in weight.args(bias)]
    assert torch.equal(gemm_4bit(strided(A), *spread), expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_packed_bytes_of_any_storage(gemm_4bit: Any, storage: torch.dtype) -> None:
    weight, A = Weight(24, 128, 32), normal(3, 128)
    expected = gemm_4bit(A, *weight.args())
    assert torch.equal(gemm_4bit(A, weight.packed.view(-1).view(storage).view(-1, 1), *weight.args()[1:]), expected)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(("M", "N"), [(1, 19), (8, 35)])
def test_out_is_written_and_nothing_around_it(gemm_4bit: Any, M: int, N: int, contiguous: bool) -> None:
    weight, A = Weight(N, 96, 32), normal(M, 96)
    memory = torch.full((M + 2, N) if contiguous else (N, M + 2), 7.0)
    around = memory if contiguous else memory.t()
    out = around[1:-1]
    assert gemm_4bit(A, *weight.args(), out=out) is out
    assert torch.equal(out, gemm_4bit(A, *weight.args()))
    assert (around[[0, -1]] == 7).all()


def test_out_that_is_an_input(gemm_4bit: Any) -> None:
    weight, A = Weight(64, 64, 64), normal(9, 64)
    expected = gemm_4bit(A, *weight.args())
    assert torch.equal(gemm_4bit(A, *weight.args(), out=A), expected)


@pytest.mark.parametrize("M", [1, 9])
def test_inputs_are_not_written(gemm_4bit: Any, M: int) -> None:
    inputs = [normal(M, 200), *Weight(33, 200, 16, nested=True).args(normal(33))]
    before = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    gemm_4bit(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True) if isinstance(x, Tensor))
