"""The quantization tables, each written once.

A table is computed in plain Python with every rounding to fp32 spelled out, so that its bits depend neither on the
machine nor on the mode (fake, inference, `torch.device("meta")`) in which it is first asked for. The `*_values`
functions return tuples of floats that fp32 holds exactly; generators of native tables read these. The functions beside
them return the same as fp32 tensors, cached per device and shared by all callers: clone one before writing to it.

    four_bit("nf4" | "fp4" | "af4")                                16 entries, entry i is the value of code i
    dynamic_map, linear_map, normal_map, fp8_map                  256 entries for uint8 codes

NF4 and the quantiles of a normal: QLoRA, arXiv:2305.14314. AF4: arXiv:2306.06965. Dynamic (tree) map: 8-bit optimizers,
arXiv:2110.02861.
"""

from __future__ import annotations

import functools
import struct
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import torch

__all__ = [
    "FOUR_BIT",
    "TABLE_SIZE",
    "DecisionTable",
    "as_table",
    "decision_table",
    "dynamic_map",
    "dynamic_values",
    "four_bit",
    "fp8_map",
    "fp8_values",
    "linear_map",
    "linear_values",
    "normal_map",
    "normal_values",
]

Values = tuple[float, ...]

TABLE_SIZE = 256


def _f32(x: float) -> float:
    """`x` rounded to the nearest fp32 value."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def _rounded(*values: float) -> Values:
    return tuple(_f32(v) for v in values)


# FP4 has a sign bit, two exponent bits and a mantissa bit; codes 0 and 8 are both +0.
FOUR_BIT: dict[str, Values] = {
    "nf4": _rounded(
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ),
    "fp4": _rounded(*(sign * twelfths / 12 for sign in (1, -1) for twelfths in (0, 0.0625, 8, 12, 4, 6, 2, 3))),
    "af4": _rounded(
        *(1.0, 0.72424865, 0.55496234, 0.42563882, 0.31675667, 0.21961275, 0.12934484, 0.04273164),
        *(0.0, -0.04934812, -0.14982478, -0.25607553, -0.3736951, -0.5124374, -0.6944101, -1.0),
    ),
}


def _evenly(first: float, last: float, count: int) -> list[float]:
    """`count` fp32 values from `first` to `last`, built from both ends so that the steps are symmetric."""
    first, last = _f32(first), _f32(last)
    step = _f32(_f32(last - first) / (count - 1))
    half = count // 2
    return [_f32(first + step * i) if i < half else _f32(last - step * (count - 1 - i)) for i in range(count)]


def _cells(count: int) -> list[float]:
    """Centres of `count` equal cells of [0.1, 1]."""
    return [_f32(_f32(low + high) / 2) for low, high in pairwise(_evenly(0.1, 1.0, count + 1))]


def _padded(values: list[float]) -> Values:
    """Zeros in the middle of the list, up to the size of a table."""
    middle = len(values) // 2
    return (*values[:middle], *[0.0] * (TABLE_SIZE - len(values)), *values[middle:])


@functools.cache
def dynamic_values(signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8) -> Values:
    """Dynamic map: decades of linear cells, where each decade further from 1 has half as many cells as the one before.

    signed: values of both signs, or twice as many of one.
    max_exponent_bits: number of decades, the widest being [0.1, 1].
    total_bits: 2**total_bits entries (one of them 0, one of them 1), zeros for the rest of the 256.
    Bits that are neither exponent nor sign subdivide every decade; patterns left over are extra cells in the widest.

    Raises ValueError where there are more than 256 values.
    """
    mantissa_bits = total_bits - 1 - max_exponent_bits
    cells_bits = mantissa_bits + (0 if signed else 1)
    decades = [(10.0 ** (i + 1 - max_exponent_bits), int(2.0 ** (i + cells_bits))) for i in range(max_exponent_bits)]
    positive = [_f32(_f32(scale) * cell) for scale, count in decades if count for cell in _cells(count)]
    positive += _cells(2**mantissa_bits - 1) if mantissa_bits > 0 else []
    values = [*positive, *([-v for v in positive] if signed else []), 0.0, 1.0]
    if len(values) > TABLE_SIZE:
        raise ValueError(
            f"dynamic_map: {max_exponent_bits} exponent bits of {total_bits} give {len(values)} values, "
            f"expected at most {TABLE_SIZE}"
        )
    return tuple(sorted(values + [0.0] * (TABLE_SIZE - len(values))))


@functools.cache
def linear_values(signed: bool = True, total_bits: int = 8, add_zero: bool = True) -> Values:
    """Evenly spaced values of [-1, 1], or of [0, 1] for unsigned ones.

    add_zero: a signed map has one entry less, so that its middle one is zero (where rounding leaves it one).
    Maps of fewer than 256 entries have zeros inserted in their middle.
    """
    count = 2**total_bits - (1 if signed and add_zero else 0)
    return _padded(_evenly(-1.0 if signed else 0.0, 1.0, count))


@functools.cache
def normal_values(offset: float = 0.9677083, use_extra_value: bool = True) -> Values:
    """Quantiles of a standard normal, evenly spaced in probability between `offset` and one half, over the largest.

    Seven negative values, zero, and eight positive ones, or seven without the extra value: NF4 is this map.
    """

    def quantiles(count: int) -> list[float]:
        return [NormalDist().inv_cdf(p) for p in _evenly(offset, 0.5, count + 1)[:-1]]

    values = _rounded(*quantiles(8 if use_extra_value else 7), *(-v for v in quantiles(7)))
    largest = max(values)
    return tuple(sorted(_rounded(*(v / largest for v in values)) + (0.0,) * (TABLE_SIZE - len(values))))


@functools.cache
def fp8_values(signed: bool = True, exponent_bits: int = 5, precision_bits: int = 2, total_bits: int = 8) -> Values:
    """All values of a small floating-point format over its largest; every bit pattern is a number.

    Normal values have exponents up to 2**(exponent_bits-1), subnormal ones the scale 2**-2**(exponent_bits-1).
    Formats of fewer than 8 bits are padded with zeros.

    Raises ValueError where the bits of sign, exponent and precision do not add up to `total_bits`.
    """
    bits = int(signed) + exponent_bits + precision_bits
    if bits != total_bits:
        raise ValueError(
            f"fp8_map: {int(signed)} sign + {exponent_bits} exponent + {precision_bits} precision bits are {bits}, "
            f"expected total_bits = {total_bits}"
        )
    top = 2 ** (exponent_bits - 1)
    fractions = [i / 2**precision_bits for i in range(2**precision_bits)]
    scales = [2.0 ** (top - i) for i in range(2**exponent_bits - 1)]
    values = [f * 2.0**-top for f in fractions] + [(1 + f) * scale for scale in scales for f in fractions]
    values += [-v for v in values] if signed else []
    values += [0.0] * (TABLE_SIZE - len(values))
    largest = max(values)
    return _rounded(*(v / largest for v in sorted(values)))


# By the identity of their values, which they keep alive, and device.
_tables: dict[tuple[int, torch.device], tuple[Values, torch.Tensor]] = {}


def as_table(values: Values, device: torch.device | str = "cpu") -> torch.Tensor:
    """`values` as a fp32 tensor on `device`, cached: no caller may write to it."""
    device = torch.device(device)
    if not torch.compiler.is_compiling():  # torch < 2.13 traces no id()
        found = _tables.get((id(values), device))  # a tuple of 256 numbers is hashed in 10 µs
        if found is not None and not _is_traced(torch.empty(0, device="cpu")):
            return found[1]
    with torch.inference_mode(False):  # an inference tensor could never be saved for a backward
        table = torch.tensor(values, dtype=torch.float32, device=device)
    if not _is_traced(table):
        _tables[id(values), device] = values, table
    return table


def _is_traced(tensor: torch.Tensor) -> bool:
    """True for what a trace makes, fake tensors and wrappers of torch.func, that must not outlive it in the cache."""
    functorch = torch._C._functorch
    return (
        torch.compiler.is_compiling()
        or type(tensor) is not torch.Tensor
        or functorch.is_functorch_wrapped_tensor(tensor)
        or torch._is_functional_tensor(tensor)
    )


def four_bit(quant_type: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """The 16 values of a 4-bit type (`nf4`, `fp4`, `af4`); shared. Raises KeyError for another type."""
    return as_table(FOUR_BIT[quant_type], device)


def dynamic_map(
    signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """`dynamic_values` as a shared fp32 tensor [256]."""
    return as_table(dynamic_values(signed, max_exponent_bits, total_bits), device)


def linear_map(
    signed: bool = True, total_bits: int = 8, add_zero: bool = True, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """`linear_values` as a shared fp32 tensor [256]."""
    return as_table(linear_values(signed, total_bits, add_zero), device)


def normal_map(
    offset: float = 0.9677083, use_extra_value: bool = True, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """`normal_values` as a shared fp32 tensor [256]."""
    return as_table(normal_values(offset, use_extra_value), device)


def fp8_map(
    signed: bool = True,
    exponent_bits: int = 5,
    precision_bits: int = 2,
    total_bits: int = 8,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """`fp8_values` as a shared fp32 tensor [256]. Raises ValueError where the bits do not add up."""
    return as_table(fp8_values(signed, exponent_bits, precision_bits, total_bits), device)


class DecisionTable(NamedTuple):
    """Boundaries between the values of a code in ascending order, and the codes (uint8) of the values in that order."""

    boundaries: torch.Tensor
    codes: torch.Tensor

    def nearest(self, t: torch.Tensor) -> torch.Tensor:
        """The code of the value nearest to each number; a number on a boundary belongs to the value below it."""
        position = torch.bucketize(t, self.boundaries, out_int32=True)
        return self.codes.index_select(0, position.view(-1))


def decision_table(code: torch.Tensor, merge_equals: bool = True) -> DecisionTable:
    """Boundaries are midpoints of neighbours, rounded to fp32.

    Equal values are served by the one with the lowest index. Not merged, they are neighbours like others: the lowest
    index has the numbers up to the value, the highest those above. NaN is nearest to nothing.
    """
    values, order = torch.sort(code.masked_fill(code.isnan(), torch.inf), stable=True)
    if merge_equals:
        order = order.index_select(0, torch.searchsorted(values, values))
    return DecisionTable((values[:-1] + values[1:]) / 2, order.to(torch.uint8))
