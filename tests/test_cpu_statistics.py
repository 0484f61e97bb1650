"""The native statistics against the reference and against float64 mathematics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu.levels import AVAILABLE
from bnb_core.backends.cpu.statistics import Statistics, kernels
from bnb_core.backends.reference import statistics as reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 2, 7, 33, 4096, 4097, 100_003)


@pytest.fixture(params=AVAILABLE)
def native(request: pytest.FixtureRequest) -> Statistics:
    """Each test runs once for each level of instructions that this CPU has."""
    result: Statistics = getattr(kernels, request.param)
    return result


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_quantiles_are_those_of_the_reference(native: Statistics, size: int, dtype: torch.dtype) -> None:
    A = normal(size, dtype=dtype)
    for offset, count in ((1 / 512, 256), (0.0, 3), (0.4, 1), (0.01, 1000)):
        found = native.estimate_quantiles(A, offset, count)
        assert torch.equal(found, reference.estimate_quantiles(A, offset, count))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1.0, -math.inf, math.nan, 3.0, math.inf, -2.0], id="special"),
        pytest.param([2.0] * 9, id="equal"),
        pytest.param([1e-45, -1e-45, 0.0, -0.0, 1e-38, -1e-38], id="subnormal"),
        pytest.param([3.4e38, -3.4e38, 1.0, math.ulp(1.0) + 1.0], id="extreme"),
    ],
)
def test_quantiles_of_special_values(native: Statistics, values: list[float]) -> None:
    A = torch.tensor(values)
    found, expected = (f(A, 0.0, len(values)) for f in (native.estimate_quantiles, reference.estimate_quantiles))
    assert torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_negative_nan_counts_as_the_largest(native: Statistics) -> None:
    A = torch.tensor([-0x400000, 0x40000000, 0x3F800000], dtype=torch.int32).view(torch.float32)  # -NaN, 2, 1
    first, _, last = native.estimate_quantiles(A, 0.0, 3).tolist()
    assert first == 1.0
    assert math.isnan(last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, *SIZES])
def test_the_norm_is_that_of_float64(native: Statistics, size: int, dtype: torch.dtype) -> None:
    grad = normal(size, dtype=dtype)
    history = normal(100, seed=1).abs()
    norm, _, _ = native.percentile_clipping(grad, history, 207)
    expected = grad.double().square().sum()
    assert norm.item() == pytest.approx(expected.sqrt().item(), rel=1e-6)
    assert history[7].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("percentile", [0, 5, 50, 99])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_the_reference(native: Statistics, percentile: int, scale: float) -> None:
    grad = normal(64, 3) * scale
    ours = normal(100, seed=1).abs() * 200
    ours[11:14] = ours[50]
    ours[40] = math.nan
    theirs = ours.clone()
    found = native.percentile_clipping(grad, ours, 3, percentile)
    expected = reference.percentile_clipping(grad, theirs, 3, percentile)
    assert torch.allclose(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=0, equal_nan=True)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0, equal_nan=True)


def test_a_strided_history_is_written(native: Statistics) -> None:
    table = torch.zeros(100, 2)
    native.percentile_clipping(torch.full((4,), 2.0), table[:, 1], 5)
    assert table[5].tolist() == [0.0, 16.0]
    assert table.sum() == 16.0


def test_the_norm_does_not_depend_on_the_number_of_threads(native: Statistics) -> None:
    grad, before, found = normal(1_000_003), torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.add(native.percentile_clipping(grad, torch.zeros(100), 0)[0].item())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.fixture
def other_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.usefixtures("other_defaults")
def test_results_do_not_follow_the_defaults_of_torch(native: Statistics) -> None:
    A = torch.ones(9, dtype=torch.float32, device="cpu")
    history = torch.ones(100, dtype=torch.float32, device="cpu")
    for result in (native.estimate_quantiles(A), *native.percentile_clipping(A, history, 3)):
        assert (result.dtype, result.device.type) == (torch.float32, "cpu")
