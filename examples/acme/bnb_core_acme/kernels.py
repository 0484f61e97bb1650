"""The kernels of acme: those of the CPU, on its memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bnb_core.ops_registry import kernels_for

from .device import on_device, on_host


def _kernel(op: str) -> Callable[..., Any]:
    """The operator of the CPU on aliases of its tensors; with the parameters of the reference, those of the schema."""
    overloads = getattr(torch.ops.bnb_core, op)

    @wraps(kernels_for(op, "cpu")[-1].function)
    def kernel(*args: Any, out: Any = None) -> Any:
        index = next(value.device.index for value in args if isinstance(value, Tensor))
        aliases = tree_map_only(Tensor, on_host, args)
        if out is None:
            return tree_map_only(Tensor, partial(on_device, index=index), overloads.default(*aliases))
        overloads.out(*aliases, *map(on_host, out if isinstance(out, tuple) else (out,)))
        return out

    return kernel


quantize_4bit = _kernel("quantize_4bit")
dequantize_4bit = _kernel("dequantize_4bit")
quantize_blockwise = _kernel("quantize_blockwise")
dequantize_blockwise = _kernel("dequantize_blockwise")
int8_vectorwise_quant = _kernel("int8_vectorwise_quant")
int8_mm = _kernel("int8_mm")
