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

__all__ = ["Golden", "golden_cases"]


@dataclass(frozen=True)
class Golden:
    """Arguments on a device; what must be returned and left in the mutated arguments, on the CPU."""

    name: str
    args: tuple[Any, ...]
    results: list[Any]


# Blocks of 16: multiples of an eighth, zeros, one with NaN, one with Inf, and a tail of three.
_BLOCK = [4.0, -4.0, 0.0, 2.0, -2.0, 1.0, -1.0, 0.5, -0.5, 3.0, -3.0, 1.5, -1.5, 0.0, 4.0, -0.0]
_VALUES = [*_BLOCK, *[0.0] * 16, 1.0, nan, *[1.0] * 14, *[-inf, 1.0] * 8, -0.5, 0.125, 0.5]
_SCALES = [4.0, 0.0, nan, nan, 0.5]
# The even element in the high half; after an odd number of elements the code of 0.
_PACKED = {
    "nf4": "f07c 2a49 6e1b 37f7" + "77" * 24 + "0af7",
    "fp4": "3b05 d7f6 e2a4 c030" + "00" * 24 + "b730",
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
            yield f"{quant_type} {dtype}", (values, 16, quant_type, torch.uint8), results


def _words(quant_type: str) -> tuple[Tensor, list[float]]:
    """34 codes of known value, an odd one in the last byte, and their values in blocks of 16 with scales 2, 0.5, 4."""
    codes = list(_EXACT[quant_type])
    order = [codes[(i * i + i // 3) % len(codes)] for i in range(33)]
    packed = [order[i] << 4 | (order[i + 1] if i + 1 < len(order) else 0) for i in range(0, len(order), 2)]
    scale = (2.0, 0.5, 4.0)
    values = [_EXACT[quant_type][code] * scale[i // 16] for i, code in enumerate(order)]
    return torch.tensor(packed, dtype=torch.uint8).view(-1, 1), values


def _dequantize_4bit() -> Written:
    for quant_type in QUANT_TYPES:
        packed, values = _words(quant_type)
        for dtype in _FLOATS:
            args = (packed, torch.tensor([2.0, 0.5, 4.0]), 16, quant_type, (3, 11), dtype)
            yield f"{quant_type} {dtype}", args, [torch.tensor(values, dtype=dtype).view(3, 11)]
            poisoned = (packed, torch.tensor([0.0, nan, 4.0]), 16, quant_type, (33,), dtype)
            zeros = [0.0 * value for value in values[:16]]
            want = torch.tensor([*zeros, *[nan] * 16, *values[32:]], dtype=dtype)
            yield f"{quant_type} {dtype}, scales zero and NaN", poisoned, [want]


def _gemm_4bit() -> Written:
    # Rows of the identity pick the columns of the weight.
    for quant_type in QUANT_TYPES:
        packed, values = _words(quant_type)
        weight = torch.tensor(values).view(3, 11)
        for dtype in _FLOATS:
            bias = torch.tensor([1.0, 0.0, -2.0], dtype=dtype)
            args = (torch.eye(11, dtype=dtype), packed, (3, 11), torch.tensor([2.0, 0.5, 4.0]), 16, quant_type)
            yield f"{quant_type} {dtype}, identity", args, [weight.t().to(dtype).contiguous()]
            yield f"{quant_type} {dtype}, bias", (*args, bias), [(weight.t() + bias.float()).to(dtype)]


def _embedding_4bit() -> Written:
    for quant_type in QUANT_TYPES:
        packed, values = _words(quant_type)
        for dtype in _FLOATS:
            scales = torch.tensor([2.0, 0.5, 4.0])
            args = (torch.tensor([2, 0, 2]), packed, (3, 11), scales, 16, quant_type, dtype)
            yield f"{quant_type} {dtype}", args, [torch.tensor(values, dtype=dtype).view(3, 11)[[2, 0, 2]]]


_CODE = [-1.0, -0.5, 0.0, 0.5, 1.0]


def _quantize_blockwise() -> Written:
    # Of 4: on the boundaries -3, -1, 1 and 3 the lower value. Then zeros, a block with NaN, and a tail.
    values = [4.0, -4.0, -3.0, -1.0, 1.0, 3.0, 3.25, -0.0, *[0.0] * 8, nan, *[1.0] * 7, 0.25, -0.5]
    codes = [4, 0, 0, 1, 2, 3, 4, 2, *[2] * 8, *[2] * 8, 3, 0]
    for dtype in _FLOATS:
        args = (torch.tensor(values, dtype=dtype), torch.tensor(_CODE), 8)
        yield f"{dtype}", args, [torch.tensor(codes, dtype=torch.uint8), torch.tensor([4.0, 0.0, nan, 0.5])]


def _dequantize_blockwise() -> Written:
    codes = torch.tensor([[0, 1, 2], [3, 4, 0], [4, 4, 1]], dtype=torch.uint8)
    for dtype in _FLOATS:
        args = (codes, torch.tensor([4.0, nan, 0.5]), torch.tensor(_CODE), 4, dtype)
        yield f"{dtype}", args, [torch.tensor([[-4.0, -2.0, 0.0], [2.0, nan, nan], [nan, nan, -0.25]], dtype=dtype)]


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
