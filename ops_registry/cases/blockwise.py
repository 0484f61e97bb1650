"""Inputs of the blockwise operators."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import ceil_div
from ..codebooks import dynamic_map, linear_map
from ..formats import FLOATS
from .maker import BadCase, Case, Maker, changer


def _shapes(make: Maker) -> Iterator[tuple[tuple[int, ...], int]]:
    """(shape, blocksize): one block, a tail, a block size that is no power of two, a scalar, nothing."""
    yield from [((1000,), 64), ((33, 130), 256), ((3, 5, 7), 100), ((), 4), ((0,), 64), ((4, 0, 2), 64), ((1,), 4096)]
    if make.full:
        yield from [((n,), b) for b in (1, 64, 128, 256, 512, 1024, 2048, 4096) for n in (b - 1, b, b + 1, 3 * b + 17)]


def _codes(make: Maker) -> Iterator[tuple[str, Tensor]]:
    yield "dynamic", dynamic_map(signed=True).to(make.device)
    yield "unsigned", dynamic_map(signed=False).to(make.device)
    if make.full:
        yield "linear", linear_map(signed=True).to(make.device)
        yield "4 entries", make.tensor([-1.0, -0.25, 0.5, 1.0])


def _beside_boundaries(make: Maker, code: Tensor) -> Tensor:
    """Where the nearest code changes, and the numbers next to it, up to 1; blocks of 64, each with the absmax 1."""
    values = code.cpu()
    values = values[~values.isnan()].sort().values
    edges = torch.cat([(values[1:] + values[:-1]) / 2, values, torch.tensor([0.0, -0.0, 1e-40])])
    infinity = torch.tensor(torch.inf)
    numbers = torch.cat([edges, torch.nextafter(edges, infinity), torch.nextafter(edges, -infinity)])
    numbers = numbers[numbers.abs() <= 1]
    blocks = numbers.new_ones(ceil_div(numbers.numel(), 63), 64)
    blocks[:, :63] = torch.nn.functional.pad(numbers, (0, len(blocks) * 63 - numbers.numel())).view(-1, 63)
    return blocks.to(make.device)


def quantize_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for code_name, code in _codes(make):
            for shape, blocksize in _shapes(make):
                A = make.normal(*shape, dtype=dtype)
                yield Case(f"{dtype} {code_name} {list(shape)} blocksize {blocksize}", (A, code, blocksize))
    code = dynamic_map(signed=True).to(make.device)
    A = make.with_zero_block(make.normal(500), 64)
    yield Case("zero block", (A, code, 64))
    A = make.normal(500)
    A[70], A[130], A[499] = torch.nan, torch.inf, -torch.inf
    yield Case("NaN and Inf", (A, code, 64))
    yield Case("strided", (make.strided(make.normal(40, 33)), code, 64))
    yield Case("transposed", (make.normal(40, 33).t(), code, 64))
    yield Case("subnormal", (make.normal(300, scale=1e-41), code, 64))
    yield Case("huge", (make.normal(300, scale=1e38).clamp(-3e38, 3e38), code, 64))
    yield Case("short code", (make.normal(300), make.tensor([-1.0, -0.25, 0.5, 1.0]), 64))
    yield Case("many", (make.normal(70001), code, 64))
    tables = {
        **dict(_codes(make)),
        "beyond 1": make.normal(256, scale=3.0),
        "of tiny values": make.tensor([-1e-8, 0.0, 1e-8, 1e-40, 1.0]),
        "with NaN": make.tensor([torch.nan, 0.5, -1.0, torch.nan, 1.0]),
        "without zero": make.tensor([-1.0, -0.25, 0.25, 1.0]),
    }
    for name, table in tables.items():
        yield Case(f"boundaries of a code, {name}", (_beside_boundaries(make, table), table, 64))
    yield Case("duplicate and unsorted codes", (make.normal(300), make.tensor([0.0, 1.0, -1.0, 0.0, 0.5, 0.5]), 64))


def dequantize_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for code_name, code in _codes(make):
            for shape, blocksize in _shapes(make):
                A = make.integers(*shape, low=0, high=code.numel(), dtype=torch.uint8)
                absmax = make.absmax(A.numel(), blocksize)
                name = f"{dtype} {code_name} {list(shape)} blocksize {blocksize}"
                yield Case(name, (A, absmax, code, blocksize, dtype))
    code = dynamic_map(signed=True).to(make.device)
    absmax = make.tensor([0.0, torch.nan, torch.inf, 1e-40, 3e38])
    yield Case("zero, NaN, Inf, subnormal and huge scales", (make.bytes(300), absmax, code, 64, torch.float32))
    yield Case("fp16 overflow", (make.bytes(300), absmax * 0 + 1e6, code, 64, torch.float16))
    halves = make.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    for dtype in FLOATS[1:]:
        A = make.integers(1000, low=0, high=5, dtype=torch.uint8)
        yield Case(f"{dtype} ties, overflow and subnormal values", (A, make.edge_scales(), halves, 64, dtype))
    yield Case("many", (make.bytes(70001), make.absmax(70001, 64), code, 64, torch.bfloat16))
    yield Case("strided", (make.strided(make.bytes(40, 33)), make.absmax(40 * 33, 64), code, 64, torch.float32))
    absmax = make.strided(make.absmax(640, 64))
    yield Case("strided scales", (make.bytes(640), absmax, code, 64, torch.bfloat16))
    yield Case(
        "codes past a short code", (make.bytes(300), make.absmax(300, 64), make.tensor([0.0, 1.0]), 64, torch.float32)
    )


def bad_quantize(make: Maker) -> Iterator[BadCase]:
    A, code = make.normal(100), dynamic_map(signed=True).to(make.device)
    yield BadCase("float64", (A.double(), code, 64), "A is float64, expected float32, float16 or bfloat16")
    yield BadCase("integers", (A.int(), code, 64), "A is int32, expected")
    yield BadCase("code dtype", (A, code.half(), 64), "code is float16, expected float32")
    yield BadCase("code shape", (A, code.view(2, 128), 64), "code has 2 dimensions, expected 1")
    yield BadCase("long code", (A, make.normal(257), 64), "code has 257 entries, expected 1 to 256")
    yield BadCase("empty code", (A, make.normal(0), 64), "code has 0 entries, expected 1 to 256")
    yield BadCase("blocksize 0", (A, code, 0), "blocksize is 0, expected at least 1")
    yield BadCase("blocksize -64", (A, code, -64), "blocksize is -64, expected at least 1")
    yield BadCase("device", (A, code.to("meta"), 64), "is on .*, expected .* as the other tensors")


def bad_dequantize(make: Maker) -> Iterator[BadCase]:
    args = changer(
        {"A": make.bytes(100), "absmax": make.positive(2), "code": dynamic_map(signed=True).to(make.device)}
        | {"blocksize": 64, "dtype": torch.float32}
    )
    yield BadCase("A dtype", args(A=make.normal(100)), "A is float32, expected uint8")
    yield BadCase("absmax dtype", args(absmax=make.positive(2).half()), "absmax is float16, expected float32")
    needs = r"absmax has {} elements, but A of shape \(100,\) with blocksize 64 needs 2"
    yield BadCase("short absmax", args(absmax=make.positive(1)), needs.format(1))
    yield BadCase("long absmax", args(absmax=make.positive(3)), needs.format(3))
    yield BadCase("code dtype", args(code=make.normal(256).double()), "code is float64, expected float32")
    yield BadCase("blocksize 0", args(blocksize=0), "blocksize is 0, expected at least 1")
    yield BadCase("dtype", args(dtype=torch.float64), "dtype is float64, expected float32, float16 or bfloat16")
    yield BadCase("integer dtype", args(dtype=torch.int8), "dtype is int8, expected")
    yield BadCase("device", args(absmax=make.positive(2).to("meta")), "is on .*, expected .* as the other tensors")
