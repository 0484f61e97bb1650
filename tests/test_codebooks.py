"""The quantization tables: what they hold, in whatever mode they are asked for. Bit for bit: `test_golden.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bnb_core.ops_registry import codebooks
from bnb_core.ops_registry.codebooks import (
    FOUR_BIT,
    dynamic_map,
    dynamic_values,
    four_bit,
    fp8_map,
    fp8_values,
    linear_values,
    normal_map,
    normal_values,
)

ALL_VALUES = [
    *FOUR_BIT.values(),
    dynamic_values(),
    dynamic_values(signed=False),
    linear_values(),
    normal_values(),
    fp8_values(),
    fp8_values(exponent_bits=4, precision_bits=3),
]


@pytest.mark.parametrize("values", ALL_VALUES)
def test_values_are_exact_in_fp32(values: tuple[float, ...]) -> None:
    assert torch.tensor(values, dtype=torch.float32).double().tolist() == list(values)
    assert max(values) == 1.0


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(3, 9))
def test_dynamic_map_has_all_codes_and_is_ascending(signed: bool, bits: int) -> None:
    table = dynamic_map(signed, bits - 1, bits)
    assert table.shape == (256,)
    assert bool((table.diff() >= 0).all())
    assert table.unique().numel() == 2**bits
    assert {0.0, 1.0} <= set(table.tolist())
    negative = table[table < 0]
    assert negative.numel() == (2 ** (bits - 1) - 1 if signed else 0)
    assert torch.equal(-negative.flip(0), table[(table > 0) & (table < 1)][: negative.numel()])


def test_dynamic_map_decades_span_seven_powers_of_ten() -> None:
    smallest = min(v for v in dynamic_values() if v > 0)
    assert smallest == pytest.approx(0.55e-6)


@pytest.mark.parametrize("exponent_bits", range(1, 8))
def test_dynamic_map_fills_256_codes_with_fewer_exponent_bits(exponent_bits: int) -> None:
    assert dynamic_map(True, exponent_bits, 8).unique().numel() == 256


def test_nf4_is_the_normal_map_and_fp4_a_floating_point_format() -> None:
    assert normal_map().unique().tolist() == list(FOUR_BIT["nf4"])
    steps = sorted({round(abs(v) * 12, 4) for v in FOUR_BIT["fp4"]})
    assert steps == [0, 0.0625, 2, 3, 4, 6, 8, 12]
    assert FOUR_BIT["fp4"][0] == FOUR_BIT["fp4"][8] == 0.0


def test_fp8_map_holds_every_pattern() -> None:
    table = fp8_map(True, 4, 3)
    assert table.unique().numel() == 255  # two zeros
    assert torch.equal(table.sort().values, table)


def test_bad_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="1 sign \\+ 5 exponent \\+ 3 precision bits are 9, expected total_bits = 8"):
        fp8_map(True, 5, 3)
    with pytest.raises(ValueError, match="give 257 values, expected at most 256"):
        dynamic_map(False, 8, 8)
    with pytest.raises(KeyError):
        four_bit("int4")


def test_tables_are_cached_per_device(device: torch.device) -> None:
    assert four_bit("nf4", device) is four_bit("nf4", device)
    assert four_bit("nf4", device).device.type == device.type
    assert dynamic_map() is dynamic_map(True, 7, 8)


def test_tables_do_not_depend_on_the_mode() -> None:
    """A table first asked for in a strange mode must not stay strange."""
    code = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from bnb_core.ops_registry.codebooks import dynamic_map, four_bit
with FakeTensorMode():
    assert type(dynamic_map()) is not torch.Tensor
with torch.device("meta"), torch.inference_mode():
    table = four_bit("nf4")
assert type(dynamic_map()) is torch.Tensor and dynamic_map()[-1] == 1
assert table.device.type == "cpu" and not table.is_inference() and table[0] == -1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cached_table_stays_out_of_fake_modes() -> None:
    real = dynamic_map()
    with FakeTensorMode():
        assert (dynamic_map() + 1).shape == (256,)
    assert codebooks.dynamic_map() is real


@pytest.mark.parametrize("transform", [torch.func.functionalize, lambda f: torch.func.grad(lambda x: f(x).sum())])
def test_a_cached_table_stays_out_of_functional_transforms(transform: Callable[..., Any]) -> None:
    codebooks._tables.clear()
    transform(lambda x: x * dynamic_map()[255])(torch.ones(2))
    table = dynamic_map()
    assert type(table) is torch.Tensor
    assert not torch._is_functional_tensor(table)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(table)
