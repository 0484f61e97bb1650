"""Arguments and results that are written down, so that a fault that the reference shares is found too.

Each is small enough to be followed by hand from the definition of its operator (docs/ops.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from bnb_core.ops_registry import QUANT_TYPES
from bnb_core.ops_registry.codebooks import dynamic_map

__all__ = ["Golden", "golden_cases"]


@dataclass(frozen=True)
class Golden:
    """Arguments on a device; what must be returned and left in the mutated arguments, on the CPU."""

    name: str
    args: tuple[Any, ...]
    results: list[Any]


# Blocks of 64, which most kernels take: multiples of an eighth, zeros, one with NaN, one with Inf, a tail of three.
_SIXTEEN = [4.0, -4.0, 0.0, 2.0, -2.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 1.5, -1.5, 0.0, 4.0, -0.0]
_VALUES = [*_SIXTEEN * 4, *[0.0] * 64, 1.0, nan, *[1.0] * 62, *[-inf, 1.0] * 32, -0.5, 0.125, 0.5]
_SCALES = [4.0, 0.0, nan, nan, 0.5]
# The even element in the high half; after an odd number of elements the code of 0.
_PACKED = {
    "nf4": "f07c 2a49 6e1b 37f7" * 4 + "77" * 96 + "0af7",
    "fp4": "3b05 d7f6 e2a4 c030" * 4 + "00" * 96 + "b730",
}
# What some codes mean, exactly in each dtype.
_EXACT = {
    "nf4": {0x0: -1.0, 0x7: 0.0, 0xF: 1.0},
    "fp4": {0x0: 0.0, 0x3: 1.0, 0x5: 0.5, 0x7: 0.25, 0xB: -1.0, 0xD: -0.5, 0xF: -0.25},
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def golden_cases(op: str, device: str) -> Iterator[Golden]:
    """Those of an operator; none where it has none."""
    for name, args, results in _CASES[op]() if op in _CASES else ():
        moved = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), args)
        yield Golden(name, moved, results)


Written = Iterator[tuple[str, tuple[Any, ...], list[Any]]]


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _quantize_4bit() -> Written:
    for quant_type in QUANT_TYPES:
        for dtype in _FLOATS:
            values = torch.tensor(_VALUES, dtype=dtype)
            results = [_bytes(_PACKED[quant_type]).view(-1, 1), torch.tensor(_SCALES)]
            yield f"{quant_type} {dtype}", (values, 64, quant_type, torch.uint8), results


def _words(quant_type: str, count: int) -> tuple[Tensor, Tensor, list[float]]:
    """Codes of known value, the scales of their blocks of 64, and their values."""
    codes = list(_EXACT[quant_type])
    order = [codes[(i * i + i // 3) % len(codes)] for i in range(count)]
    packed = [order[i] << 4 | (order[i + 1] if i + 1 < count else 0) for i in range(0, count, 2)]
    scales = [2.0, 0.5, 4.0][: -(-count // 64)]
    values = [_EXACT[quant_type][code] * scales[i // 64] for i, code in enumerate(order)]
    return torch.tensor(packed, dtype=torch.uint8).view(-1, 1), torch.tensor(scales), values


def _dequantize_4bit() -> Written:
    for quant_type in QUANT_TYPES:
        packed, scales, values = _words(quant_type, 133)
        for dtype in _FLOATS:
            args = (packed, scales, 64, quant_type, (7, 19), dtype)
            yield f"{quant_type} {dtype}", args, [torch.tensor(values, dtype=dtype).view(7, 19)]
            poisoned = (packed, torch.tensor([0.0, nan, 4.0]), 64, quant_type, (133,), dtype)
            want = [*(0.0 * value for value in values[:64]), *[nan] * 64, *values[128:]]
            yield f"{quant_type} {dtype}, scales zero and NaN", poisoned, [torch.tensor(want, dtype=dtype)]


def _gemm_4bit() -> Written:
    # Rows of the identity pick the columns of the weight, whose blocks straddle its rows.
    for quant_type in QUANT_TYPES:
        packed, scales, values = _words(quant_type, 133)
        weight = torch.tensor(values).view(7, 19).t()
        for dtype in _FLOATS:
            bias = torch.tensor([1.0, 0.0, -2.0, 0.5, 8.0, 1.0, 1.0], dtype=dtype)
            args = (torch.eye(19, dtype=dtype), packed, (7, 19), scales, 64, quant_type)
            yield f"{quant_type} {dtype}, identity", args, [weight.to(dtype).contiguous()]
            yield f"{quant_type} {dtype}, bias", (*args, bias), [(weight + bias.float()).to(dtype)]


def _embedding_4bit() -> Written:
    for quant_type in QUANT_TYPES:
        packed, scales, values = _words(quant_type, 192)
        for dtype in _FLOATS:
            args = (torch.tensor([2, 0, 2]), packed, (3, 64), scales, 64, quant_type, dtype)
            yield f"{quant_type} {dtype}", args, [torch.tensor(values, dtype=dtype).view(3, 64)[[2, 0, 2]]]


_CODE = [-1.0, -0.5, 0.0, 0.5, 1.0]


def _quantize_blockwise() -> Written:
    # Of 4: on the boundaries -3, -1, 1 and 3 the lower value. Then zeros, a block with NaN, and a tail.
    values = [*[4.0, -4.0, -3.0, -1.0, 1.0, 3.0, 3.25, -0.0] * 8, *[0.0] * 64, nan, *[1.0] * 63, 0.25, -0.5]
    codes = [*[4, 0, 0, 1, 2, 3, 4, 2] * 8, *[2] * 128, 3, 0]
    for dtype in _FLOATS:
        args = (torch.tensor(values, dtype=dtype), torch.tensor(_CODE), 64)
        yield f"{dtype}", args, [torch.tensor(codes, dtype=torch.uint8), torch.tensor([4.0, 0.0, nan, 0.5])]

    # Of the dynamic map: 1 is its last code, 0 the one in the middle, -1 is beyond its first.
    values, codes = [*[4.0, 0.0] * 32, 0.5, -0.5, 0.0], [*[255, 127] * 32, 255, 0, 127]
    for dtype in _FLOATS:
        args = (torch.tensor(values, dtype=dtype), dynamic_map(signed=True), 64)
        yield f"{dtype}, dynamic map", args, [torch.tensor(codes, dtype=torch.uint8), torch.tensor([4.0, 0.5])]


def _dequantize_blockwise() -> Written:
    codes = torch.tensor([*[0, 1, 2, 3] * 16, *[4, 0] * 32, 4, 4, 1], dtype=torch.uint8)
    values = [*[-4.0, -2.0, 0.0, 2.0] * 16, *[nan] * 64, 0.5, 0.5, -0.25]
    for dtype in _FLOATS:
        args = (codes, torch.tensor([4.0, nan, 0.5]), torch.tensor(_CODE), 64, dtype)
        yield f"{dtype}", args, [torch.tensor(values, dtype=dtype)]
    codes = torch.tensor([*[255, 127] * 32, 255, 127, 127], dtype=torch.uint8)
    for dtype in _FLOATS:
        args = (codes, torch.tensor([4.0, 0.5]), dynamic_map(signed=True), 64, dtype)
        want = torch.tensor([*[4.0, 0.0] * 32, 0.5, 0.0, 0.0], dtype=dtype)
        yield f"{dtype}, dynamic map", args, [want]


def _int8_vectorwise_quant() -> Written:
    rows = [[127.0, -64.0, 0.25, -127.0], [0.0, 0.0, 0.0, 0.0], [0.5, -0.25, 0.0, 0.125]]
    codes = torch.tensor([[127, -64, 0, -127], [0, 0, 0, 0], [127, -64, 0, 32]], dtype=torch.int8)
    results = [codes, torch.tensor([127.0, 0.0, 0.5]), None]
    for dtype in _FLOATS:
        yield f"{dtype}", (torch.tensor(rows, dtype=dtype), 0.0), results


def _int8_vectorwise_dequant() -> Written:
    codes = torch.tensor([[127, -127, 0], [127, 0, -127]], dtype=torch.int8)
    want = torch.tensor([[2.0, -2.0, 0.0], [0.5, 0.0, -0.5]])
    yield "float32", (codes, torch.tensor([2.0, 0.5])), [want]


_A8 = torch.tensor([[127, -127, 0], [1, 2, 3]], dtype=torch.int8)
_B8 = torch.tensor([[127, -127, 5], [127, 127, 127]], dtype=torch.int8)


def _int8_mm() -> Written:
    yield "int8", (_A8, _B8), [torch.tensor([[32258, 0], [-112, 762]], dtype=torch.int32)]


def _int8_mm_dequant() -> Written:
    # 16129 is the product of two ones. The factor for it that bitsandbytes has, and the operators with it, is no exact
    # inverse, which only fp32 shows.
    sums, rows, columns = torch.tensor([[16129, -16129], [0, 32258]], dtype=torch.int32), [2.0, 1.0], [0.5, 4.0]
    args = (sums, torch.tensor(rows), torch.tensor(columns))
    for dtype in (torch.float16, torch.bfloat16):
        yield f"{dtype}", (*args, dtype, None), [torch.tensor([[1.0, -8.0], [0.0, 8.0]], dtype=dtype)]
        bias = torch.tensor([1.0, -1.0], dtype=dtype)
        yield f"{dtype}, bias", (*args, dtype, bias), [torch.tensor([[2.0, -9.0], [1.0, 7.0]], dtype=dtype)]


def _int8_linear() -> Written:
    codes, scales = torch.tensor([[127, 127], [127, -127]], dtype=torch.int8), torch.tensor([1.0, 2.0])
    for dtype in (torch.float16, torch.bfloat16):
        args = (torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=dtype), codes, scales)
        yield f"{dtype}", args, [torch.tensor([[0.0, 4.0], [0.0, 0.0]], dtype=dtype)]


def _optimizer_update_32bit() -> Written:
    for dtype in _FLOATS:
        g, p = torch.tensor([0.5, -0.25, 0.0], dtype=dtype), torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        none = (None, None, 0.0, 0.0)
        args = ("momentum", g, p, torch.zeros(3), *none, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0.5, 1.0, False)
        after = torch.tensor([0.75, 2.125, 3.0], dtype=dtype)
        yield f"momentum {dtype}, first step", args, [after, g.float(), None, None]
        args = ("momentum", g, p, torch.tensor([1.0, 1.0, 0.0]), *args[4:14], 2, *args[15:])
        state = torch.tensor([1.0, 0.25, 0.0])
        yield f"momentum {dtype}, second step", args, [(p.float() - 0.5 * state).to(dtype), state, None, None]
        args = ("lion", g, p, torch.zeros(3), *none, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 1, 0.25, 1.0, False)
        after = torch.tensor([0.75, 2.25, 3.0], dtype=dtype)
        yield f"lion {dtype}", args, [after, 0.5 * g.float(), None, None]


_CASES = {
    "quantize_4bit": _quantize_4bit,
    "dequantize_4bit": _dequantize_4bit,
    "gemm_4bit": _gemm_4bit,
    "embedding_4bit": _embedding_4bit,
    "quantize_blockwise": _quantize_blockwise,
    "dequantize_blockwise": _dequantize_blockwise,
    "int8_vectorwise_quant": _int8_vectorwise_quant,
    "int8_vectorwise_dequant": _int8_vectorwise_dequant,
    "int8_mm": _int8_mm,
    "int8_mm_dequant": _int8_mm_dequant,
    "int8_linear": _int8_linear,
    "optimizer_update_32bit": _optimizer_update_32bit,
}
