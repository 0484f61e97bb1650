"""`torch.ops.bitsandbytes.*`: the public package's operators, each made of one of bnb_core's.

They are composite: a trace or an exported program holds bnb_core's operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake, register_kernel

from bnb_core.ops_registry import QUANT_TYPES
from bnb_core.ops_registry.codebooks import four_bit

__all__ = ["register_fake", "register_kernel"]

_library = torch.library.Library("bitsandbytes", "DEF")
_ops = torch.ops.bnb_core

# Theirs, by ours.
SAME = (
    "dequantize_4bit",
    "dequantize_4bit.out",
    "dequantize_blockwise",
    "dequantize_blockwise.out",
    "gemm_4bit",
    "int8_double_quant",
    "int8_mixed_scaled_mm",
    "int8_mm_dequant",
    "int8_scaled_mm",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "optimizer_update_32bit",
    "optimizer_update_8bit_blockwise",
    "quantize_4bit",
    "quantize_blockwise",
)
RENAMED = {"int8_linear_matmul": "int8_mm", "int8_linear_matmul.out": "int8_mm.out"}


def _define(theirs: str, ours: str) -> None:
    name, _, overload = ours.partition(".")
    op = getattr(getattr(_ops, name), overload or "default")
    arguments = str(op._schema).partition("(")[2]
    _library.define(f"{theirs}({arguments}")
    _library.impl(theirs, op, "CompositeImplicitAutograd")


for _theirs, _ours in {**dict(zip(SAME, SAME, strict=True)), **RENAMED}.items():
    _define(_theirs, _ours)


def _type_of(code: Tensor) -> str:
    for quant_type in QUANT_TYPES:
        if torch.allclose(code, four_bit(quant_type, code.device), rtol=0, atol=1e-6):
            return quant_type
    raise RuntimeError(f"bitsandbytes::gemv_4bit: code holds the values of none of {', '.join(QUANT_TYPES)}")


def _gemv_4bit(A: Tensor, B: Tensor, shapeB: list[int], absmax: Tensor, code: Tensor, blocksize: int) -> Tensor:
    return _ops.gemm_4bit.default(A, B, shapeB, absmax, blocksize, _type_of(code))


def _gemv_4bit_out(
    A: Tensor, B: Tensor, shapeB: list[int], absmax: Tensor, code: Tensor, blocksize: int, out: Tensor
) -> None:
    _ops.gemm_4bit.out(A, B, shapeB, absmax, blocksize, _type_of(code), None, None, None, None, out)


def _gemv_4bit_fake(A: Tensor, B: Tensor, shapeB: list[int], *rest: Any) -> Tensor:
    return A.new_empty((*A.shape[:-1], shapeB[0]))


def _define_gemv(name: str, ending: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    # The type is told from the values of the code, which no trace knows: an operator of its own.
    _library.define(f"{name}(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, Tensor code, int blocksize{ending}")
    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(name, fake, "Meta")


_define_gemv("gemv_4bit", ") -> Tensor", _gemv_4bit, _gemv_4bit_fake)
_define_gemv("gemv_4bit.out", ", Tensor(a!) out) -> ()", _gemv_4bit_out, lambda *args: None)
