"""Small calls without Python: what a call of the same signature has done before is done again in C++.

Python and its calls into torch take 5 to 15 µs of a call, beside the 4 or 5 that torch takes to dispatch it; this takes
2. It needs a torch whose tensors can be read from C, by DLPack's exchange API; with an older one all stays in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bnb_core.ops_registry.op import OPS as OPS_BY_NAME
from bnb_core.ops_registry.settings import settings

from . import _native

# Operators all of whose work is one native call on the arguments, and on memory of `empty` which it fills: nothing else
# happens in their wrappers but what follows from the signature.
OPS = frozenset(
    (
        *("quantize_blockwise", "dequantize_blockwise"),
        *("quantize_4bit", "dequantize_4bit", "gemm_4bit"),
        *("int8_vectorwise_quant", "int8_vectorwise_dequant", "int8_mm", "int8_mm_dequant"),
        *("int8_scaled_mm", "int8_linear"),
        *("optimizer_step_32bit", "optimizer_step_8bit_blockwise", "optimizer_step_8bit"),
    )
)

# Allocates for the programs that torch compiles, in half the time of torch.empty_strided.
_empty_strided = getattr(getattr(torch._C._dynamo, "guards", None), "_empty_strided_cpu", None)


def without_python(op: str, call: Callable[..., Any], settled: Callable[..., Any]) -> Callable[..., Any]:
    """What torch calls for an operator: calls of settled signatures are repeated, others go to `call`."""
    if op not in OPS or _empty_strided is None:
        return call
    of = OPS_BY_NAME[op]
    unread = tuple(name in of.unread for name in of.parameters)
    return _native.without_python(call, settled, settings, torch, _empty_strided, of.mutated, unread)
