"""Inputs of the 4-bit operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import ceil_div, product
from ..codebooks import dynamic_map
from ..formats import BLOCKSIZES, FLOATS, NESTED_BLOCKSIZE, QUANT_TYPES, STORAGES
from .maker import BadCase, Case, Maker, changer


def _shapes(make: Maker) -> Iterator[tuple[tuple[int, ...], int]]:
    """(shape, blocksize): rows that blocks straddle, odd tails, one element, nothing."""
    yield from [((33, 130), 64), ((7, 96), 64), ((1001,), 16), ((3, 5, 7), 32), ((1,), 4096), ((0,), 64), ((), 64)]
    if make.full:
        yield from [((n,), b) for b in BLOCKSIZES for n in (b - 1, b, b + 1, 3 * b + 17)]


def quantize_cases(make: Maker) -> Iterator[Case]:
    for quant_type in QUANT_TYPES:
        for dtype in FLOATS:
            for shape, blocksize in _shapes(make):
                A = make.normal(*shape, dtype=dtype)
                name = f"{quant_type} {dtype} {list(shape)} blocksize {blocksize}"
                yield Case(name, (A, blocksize, quant_type, torch.uint8))
        for storage in STORAGES:
            for n in (1, 63, 64, 129):
                yield Case(f"{quant_type} in {storage} {n}", (make.normal(n), 64, quant_type, storage))
        A = make.normal(300)
        A[70], A[130], A[299] = torch.nan, torch.inf, -torch.inf
        yield Case(
            f"{quant_type} zero block", (make.with_zero_block(make.normal(300), 64), 64, quant_type, torch.uint8)
        )
        yield Case(f"{quant_type} NaN and Inf", (A, 64, quant_type, torch.uint8))
        yield Case(f"{quant_type} strided", (make.strided(make.normal(12, 33)), 64, quant_type, torch.uint8))
        yield Case(f"{quant_type} subnormal", (make.normal(300, scale=1e-41), 64, quant_type, torch.uint8))
        for n, blocksize in ((70001, 64), (20001, 1024)):
            yield Case(f"{quant_type} many of {blocksize}", (make.normal(n), blocksize, quant_type, torch.uint8))


def dequantize_cases(make: Maker) -> Iterator[Case]:
    for quant_type in QUANT_TYPES:
        for dtype in FLOATS:
            for shape, blocksize in _shapes(make):
                args = (make.packed(shape), make.absmax(product(shape), blocksize), blocksize, quant_type, shape, dtype)
                yield Case(f"{quant_type} {dtype} {list(shape)} blocksize {blocksize}", args)
        for storage in STORAGES:
            args = (make.packed((9, 77), storage), make.absmax(9 * 77, 64), 64, quant_type, (9, 77), torch.float32)
            yield Case(f"{quant_type} in {storage}", args)
        scales = make.tensor([0.0, torch.nan, torch.inf, 1e-40, 3e38])
        args = (make.packed((300,)), scales, 64, quant_type, (300,), torch.float32)
        yield Case(f"{quant_type} zero, NaN, Inf, subnormal and huge scales", args)
        for dtype in FLOATS[1:]:
            scales = make.edge_scales()
            args = (make.packed((1000,)), scales, 64, quant_type, (1000,), dtype)
            yield Case(f"{quant_type} {dtype} ties, overflow and subnormal values", args)
        args = (make.packed((70001,)), make.absmax(70001, 64), 64, quant_type, (70001,), torch.bfloat16)
        yield Case(f"{quant_type} many", args)
        packed = make.packed((40, 33)).t()
        args = (packed, make.strided(make.absmax(1320, 64)), 64, quant_type, (40, 33), torch.float16)
        yield Case(f"{quant_type} transposed bytes, strided scales", args)
        for shape in ((9, 77), (1,)):
            packed = make.strided(make.packed(shape, torch.bfloat16))
            args = (packed, make.absmax(product(shape), 64), 64, quant_type, shape, torch.float32)
            yield Case(f"{quant_type} in strided bfloat16 {list(shape)}", args)


def _scales(make: Maker, shape: Sequence[int], blocksize: int, nested: bool) -> tuple[Tensor, tuple[Any, ...]]:
    """absmax, and the three arguments of nested statistics."""
    blocks = ceil_div(product(shape), blocksize)
    if not nested:
        return make.absmax(product(shape), blocksize), (None, None, None)
    code = dynamic_map(signed=True).to(make.device)
    return make.absmax(blocks, NESTED_BLOCKSIZE), (make.bytes(blocks), code, make.tensor(2.5))


def gemm_cases(make: Maker) -> Iterator[Case]:
    weights: list[tuple[tuple[int, int], int]] = [((16, 64), 64), ((7, 96), 64), ((5, 33), 32), ((3, 7), 16)]
    rows: list[tuple[int, ...]] = [(64,), (1,), (2, 3), (0,), ()]
    if make.full:
        weights += [((64, 512), b) for b in BLOCKSIZES]
        rows += [(2,), (4,), (17,), (5, 1, 3)]
    for quant_type in QUANT_TYPES:
        for dtype in FLOATS:
            for shape, blocksize in weights:
                for nested in (False, True):
                    lead = rows[(shape[0] + nested) % len(rows)]
                    absmax, statistics = _scales(make, shape, blocksize, nested)
                    bias = make.normal(shape[0], dtype=dtype) if shape[0] % 2 else None
                    A = make.normal(*lead, shape[1], dtype=dtype)
                    args = (A, make.packed(shape), shape, absmax, blocksize, quant_type, bias, *statistics)
                    name = f"{quant_type} {dtype} {[*lead, shape[1]]} x {list(shape)} blocksize {blocksize}"
                    yield Case(f"{name}{' nested' * nested}{' bias' * (bias is not None)}", args)
    shape = (16, 64)
    for lead in rows:
        args = (make.normal(*lead, 64), make.packed(shape), shape, make.absmax(1024, 64), 64, "nf4")
        yield Case(f"rows {list(lead)}", args)
    A = make.strided(make.normal(3, 64))
    yield Case("strided", (A, make.packed(shape).t(), shape, make.strided(make.absmax(1024, 64)), 64, "nf4"))
    yield Case("in bfloat16", (A, make.packed(shape, torch.bfloat16), shape, make.absmax(1024, 64), 64, "fp4"))
    bias = make.normal(16)
    args = (make.normal(2, 64, dtype=torch.bfloat16), make.packed(shape), shape, make.absmax(1024, 64), 64, "nf4", bias)
    yield Case("fp32 bias on bf16", args)
    for dtype in FLOATS:
        wide = (72, 1056)
        absmax, statistics = _scales(make, wide, 64, True)
        args = (make.normal(20, 1056, dtype=dtype), make.packed(wide), wide, absmax, 64, "nf4", None, *statistics)
        yield Case(f"{dtype} larger, nested", args)
        A, scales = make.normal(3, 64, dtype=dtype), make.absmax(1024, 64)
        A[0, 5], scales[3] = torch.nan, torch.nan
        yield Case(f"{dtype} NaN", (A, make.packed(shape), shape, scales, 64, "nf4"))
    wide = (72, 192)
    for count in (40, 130):
        args = (make.normal(count, 192, dtype=torch.bfloat16), make.packed(wide), wide, make.absmax(72 * 192, 64))
        yield Case(f"{count} rows", (*args, 64, "nf4", make.normal(72, dtype=torch.bfloat16)))
    for empty in ((0, 64), (4, 0)):
        args = (make.normal(3, empty[1]), make.packed(empty), empty, make.absmax(0, 64), 64, "nf4")
        yield Case(f"empty weight {list(empty)}", args)


def grouped_cases(make: Maker) -> Iterator[Case]:
    # (shape, blocksize), and ends: groups without rows at each place, rows of no group, no rows.
    weights = [((3, 16, 64), 64), ((4, 5, 48), 16), ((2, 64, 256), 64)]
    ends = {2: [[3, 5], [0, 0]], 3: [[4, 4, 7], [0, 2, 2]], 4: [[0, 1, 6, 6]]}
    for quant_type in QUANT_TYPES:
        for dtype in FLOATS:
            for shape, blocksize in weights:
                for nested in (False, True):
                    absmax, statistics = _scales(make, shape, blocksize, nested)
                    weight = (make.packed(shape), shape, absmax, blocksize, quant_type)
                    for last in ends[shape[0]]:
                        name = (
                            f"{quant_type} {dtype} {list(shape)} blocksize {blocksize} ends {last}{' nested' * nested}"
                        )
                        of = make.tensor(last, torch.int32 if nested else torch.int64)
                        bias = make.normal(*shape[:2], dtype=dtype) if nested else None
                        yield Case(name, (make.normal(7, shape[2], dtype=dtype), *weight, of, bias, *statistics))
                        gradient = make.normal(7, shape[1], dtype=dtype)
                        yield Case(f"{name} gradient", (gradient, *weight, of, None, *statistics, True))
    shape, scales = (3, 16, 64), make.absmax(3072, 64)
    of = make.tensor([1, 3, 3], torch.int64)
    for storage in STORAGES:
        args = (make.normal(3, 64), make.packed(shape, storage), shape, scales, 64, "nf4", of)
        yield Case(f"in {storage}", args)
    A, packed = make.strided(make.normal(3, 64)), make.packed(shape).t()
    yield Case("strided", (A, packed, shape, make.strided(scales), 64, "nf4", make.strided(of)))
    wide = (2, 72, 1088)
    absmax, statistics = _scales(make, wide, 64, True)
    args = (make.normal(40, 1088), make.packed(wide), wide, absmax, 64, "nf4", make.tensor([20, 40], torch.int64))
    yield Case("larger, nested", (*args, None, *statistics))
    shape_of_many = (2, 72, 192)
    weight = make.packed(shape_of_many), shape_of_many, make.absmax(2 * 72 * 192, 64), 64, "nf4"
    ends_of_many = make.tensor([70, 129], torch.int64)
    yield Case("many rows", (make.normal(130, 192, dtype=torch.bfloat16), *weight, ends_of_many))
    gradient = make.normal(130, 72, dtype=torch.bfloat16)
    yield Case("many rows, gradient", (gradient, *weight, ends_of_many, *(None,) * 4, True))
    A, poisoned = make.normal(3, 64), scales.clone()
    A[2, 5], poisoned[3] = torch.nan, torch.nan
    yield Case("NaN", (A, make.packed(shape), shape, poisoned, 64, "nf4", of))
    yield Case("no rows", (make.normal(0, 64), make.packed(shape), shape, scales, 64, "nf4", of * 0))
    empty = (make.normal(3, 0), make.packed((2, 4, 0)), (2, 4, 0), make.absmax(0, 64), 64, "nf4")
    yield Case("no columns", (*empty, make.tensor([1, 2], torch.int64)))
    none = (make.normal(3, 64), make.packed((0, 16, 64)), (0, 16, 64), make.absmax(0, 64), 64, "nf4")
    yield Case("no groups", (*none, make.tensor([], torch.int64)))


def embedding_cases(make: Maker) -> Iterator[Case]:
    for quant_type in QUANT_TYPES:
        for dtype in FLOATS:
            for shape, blocksize in [((10, 64), 64), ((10, 33), 32), ((11, 7), 16), ((4, 4096), 4096)]:
                for nested in (False, True):
                    absmax, statistics = _scales(make, shape, blocksize, nested)
                    indices = make.integers(2, 3, low=0, high=shape[0], dtype=torch.int64)
                    args = (indices, make.packed(shape), shape, absmax, blocksize, quant_type, dtype, *statistics)
                    yield Case(f"{quant_type} {dtype} {list(shape)} blocksize {blocksize}{' nested' * nested}", args)
    weight = (make.packed((10, 64)), (10, 64), make.absmax(640, 64), 64, "nf4", torch.float32)
    empty: list[tuple[int, ...]] = [(), (0,), (3, 0)]
    for lead in empty:
        yield Case(f"indices {list(lead)}", (make.integers(*lead, low=0, high=10, dtype=torch.int64), *weight))
    no_columns = (make.packed((10, 0)), (10, 0), make.absmax(0, 64), 64, "nf4", torch.float32)
    yield Case("no columns", (make.tensor([1, 2], torch.int64), *no_columns))
    absmax, statistics = _scales(make, (300, 64), 64, True)
    many = make.tensor([299, 0, 256, 257], torch.int32)
    yield Case(
        "300 rows nested", (many, make.packed((300, 64)), (300, 64), absmax, 64, "nf4", torch.float32, *statistics)
    )
    for dtype in FLOATS[1:]:
        args = (make.packed((16, 64)), (16, 64), make.edge_scales(), 64, "nf4", dtype)
        yield Case(f"{dtype} ties, overflow and subnormal values", (make.tensor([*range(16)], torch.int64), *args))
    yield Case("int32 indices", (make.tensor([9, 0, 9], torch.int32), *weight))
    yield Case("strided indices", (make.strided(make.tensor([[1, 2], [3, 9]], torch.int64)), *weight))


# -- bad cases -------------------------------------------------------------------------------------------------------


def bad_quantize(make: Maker) -> Iterator[BadCase]:
    args = changer({"A": make.normal(100), "blocksize": 64, "quant_type": "nf4", "quant_storage": torch.uint8})
    yield BadCase("A dtype", args(A=make.normal(100).double()), "A is float64, expected float32, float16 or bfloat16")
    for blocksize in (0, -64, 8, 63, 8192):
        yield BadCase(f"blocksize {blocksize}", args(blocksize=blocksize), f"blocksize is {blocksize}, expected 16, 32")
    yield BadCase("quant_type", args(quant_type="int4"), "quant_type is 'int4', expected 'nf4' or 'fp4'")
    yield BadCase("quant_storage", args(quant_storage=torch.int64), "quant_storage is int64, expected uint8")


def bad_dequantize(make: Maker) -> Iterator[BadCase]:
    shape = (10, 20)
    args = changer(
        {"A": make.packed(shape), "absmax": make.absmax(200, 64), "blocksize": 64, "quant_type": "nf4"}
        | {"shape": shape, "dtype": torch.float32}
    )
    yield BadCase("A dtype", args(A=make.packed(shape).long()), "A is int64, expected uint8")
    yield BadCase("short A", args(A=make.packed((99,))), r"A has 50 elements, but shape \(10, 20\) in 4 bits needs 100")
    yield BadCase("long A", args(A=make.packed((400,))), "A has 200 elements, but .* needs 100")
    needs = r"absmax has {} elements, but shape \(10, 20\) with blocksize 64 needs 4"
    yield BadCase("short absmax", args(absmax=make.positive(3)), needs.format(3))
    yield BadCase("long absmax", args(absmax=make.positive(5)), needs.format(5))
    yield BadCase("absmax dtype", args(absmax=make.bytes(4)), "absmax is uint8, expected float32")
    yield BadCase("blocksize", args(blocksize=48), "blocksize is 48, expected 16")
    yield BadCase("quant_type", args(quant_type=""), "quant_type is '', expected 'nf4' or 'fp4'")
    yield BadCase("negative shape", args(shape=(-10, 20)), "shape is .*, expected sizes of at least 0")
    yield BadCase("dtype", args(dtype=torch.uint8), "dtype is uint8, expected float32")
    yield BadCase("device", args(absmax=make.positive(4).to("meta")), "is on .*, expected .* as the other tensors")


def _bad_weight(
    make: Maker, args: Callable[..., tuple[Any, ...]], shape: tuple[int, ...] = (8, 32)
) -> Iterator[BadCase]:
    """What the operators with a weight refuse alike; it has 8 * 32 elements, and block size 16."""
    shown, negative = re.escape(str(shape)), (*shape[:-2], -8, 32)
    code, offset = dynamic_map(signed=True).to(make.device), make.tensor(0.5)
    nested = {"absmax": make.positive(1), "absmax_8bit": make.bytes(16), "absmax_code": code, "absmax_offset": offset}
    yield BadCase("B dtype", args(B=make.packed((8, 32)).int()), "B is int32, expected uint8")
    yield BadCase("short B", args(B=make.packed((8, 30))), f"B has 120 elements, but shape {shown} in 4 bits needs 128")
    yield BadCase("shapeB", args(shapeB=(256,)), f"shapeB has 1 sizes, expected {len(shape)}")
    yield BadCase("negative shapeB", args(shapeB=negative), "shapeB is .*, expected sizes of at least 0")
    yield BadCase("blocksize", args(blocksize=24), "blocksize is 24, expected 16")
    yield BadCase("quant_type", args(quant_type="NF4"), "quant_type is 'NF4', expected 'nf4' or 'fp4'")
    yield BadCase("absmax", args(absmax=make.positive(15)), f"absmax has 15 elements, but shapeB {shown} .* needs 16")
    yield BadCase("absmax dtype", args(absmax=make.positive(16).bfloat16()), "absmax is bfloat16, expected float32")
    for missing in ("absmax_8bit", "absmax_code", "absmax_offset"):
        yield BadCase(f"no {missing}", args(**nested | {missing: None}), "given, expected all of absmax_8bit")
    yield BadCase("absmax_8bit", args(**nested | {"absmax_8bit": make.bytes(15)}), "absmax_8bit has 15 elements, but")
    yield BadCase("absmax_8bit dtype", args(**nested | {"absmax_8bit": make.positive(16)}), "absmax_8bit is float32")
    yield BadCase(
        "nested absmax", args(**nested | {"absmax": make.positive(2)}), "absmax has 2 elements, but absmax_8bit"
    )
    yield BadCase(
        "absmax_code", args(**nested | {"absmax_code": code.half()}), "absmax_code is float16, expected float32"
    )
    yield BadCase("absmax_offset", args(**nested | {"absmax_offset": make.positive(2)}), "absmax_offset has 2 elements")
    yield BadCase("offset dtype", args(**nested | {"absmax_offset": offset.half()}), "absmax_offset is float16")
    yield BadCase("device", args(absmax=make.positive(16).to("meta")), "is on .*, expected .* as the other tensors")


def bad_gemm(make: Maker) -> Iterator[BadCase]:
    args = changer(
        {"A": make.normal(3, 32), "B": make.packed((8, 32)), "shapeB": (8, 32), "absmax": make.positive(16)}
        | {"blocksize": 16, "quant_type": "nf4", "bias": None}
        | dict.fromkeys(("absmax_8bit", "absmax_code", "absmax_offset"))
    )
    yield from _bad_weight(make, args)
    yield BadCase("A dtype", args(A=make.normal(3, 32).double()), "A is float64, expected float32")
    yield BadCase("A scalar", args(A=make.tensor(1.0)), "A is a scalar, expected at least 1 dimension")
    yield BadCase("A width", args(A=make.normal(3, 31)), r"A has shape \(3, 31\), expected 32 as its last size")
    yield BadCase("bias shape", args(bias=make.normal(7)), r"bias has shape \(7,\), expected \(8,\)")
    yield BadCase("bias dims", args(bias=make.normal(8, 1)), r"bias has shape \(8, 1\), expected \(8,\)")
    yield BadCase("bias dtype", args(bias=make.normal(8).double()), "bias is float64, expected float32")


def bad_grouped(make: Maker) -> Iterator[BadCase]:
    shape = (1, 8, 32)
    args = changer(
        {"A": make.normal(3, 32), "B": make.packed(shape), "shapeB": shape, "absmax": make.positive(16)}
        | {"blocksize": 16, "quant_type": "nf4", "ends": make.tensor([3], torch.int64), "bias": None}
        | dict.fromkeys(("absmax_8bit", "absmax_code", "absmax_offset"))
        | {"input_gradient": False}
    )
    yield from _bad_weight(make, args, shape)
    yield BadCase("A dtype", args(A=make.normal(3, 32).double()), "A is float64, expected float32")
    yield BadCase("A dims", args(A=make.normal(3, 1, 32)), "A has 3 dimensions, expected 2")
    yield BadCase("A width", args(A=make.normal(3, 8)), r"A has shape \(3, 8\), expected 32 columns for shapeB")
    yield BadCase("gradient width", args(input_gradient=True), r"A has shape \(3, 32\), expected 8 columns for shapeB")
    yield BadCase("blocks", args(blocksize=512), r"shapeB is \(1, 8, 32\), expected weights of whole blocks: 8 \* 32")
    yield BadCase("ends dtype", args(ends=make.normal(1)), "ends is float32, expected int32 or int64")
    yield BadCase("ends", args(ends=make.tensor([3, 3], torch.int64)), r"ends has shape \(2,\), expected \(1,\)")
    yield BadCase("ends dims", args(ends=make.tensor(3, torch.int64)), r"ends has shape \(\), expected \(1,\)")
    yield BadCase("bias", args(bias=make.normal(1, 9)), r"bias has shape \(1, 9\), expected \(1, 8\)")
    yield BadCase("bias dims", args(bias=make.normal(8)), r"bias has shape \(8,\), expected \(1, 8\)")
    yield BadCase("bias dtype", args(bias=make.normal(1, 8).double()), "bias is float64, expected float32")
    of_gradient = args(A=make.normal(3, 8), bias=make.normal(1, 8), input_gradient=True)
    yield BadCase("bias of a gradient", of_gradient, "bias is given, expected None for an input_gradient")


def bad_embedding(make: Maker) -> Iterator[BadCase]:
    args = changer(
        {"indices": make.tensor([0, 7], torch.int64), "B": make.packed((8, 32)), "shapeB": (8, 32)}
        | {"absmax": make.positive(16), "blocksize": 16, "quant_type": "nf4", "dtype": torch.float32}
        | dict.fromkeys(("absmax_8bit", "absmax_code", "absmax_offset"))
    )
    yield from _bad_weight(make, args)
    yield BadCase("indices dtype", args(indices=make.normal(2)), "indices is float32, expected int64 or int32")
    yield BadCase("dtype", args(dtype=torch.int64), "dtype is int64, expected float32")
