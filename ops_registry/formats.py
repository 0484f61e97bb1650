"""The formats that operators share: dtypes, 4-bit types, block sizes, and the state formats of the optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import ceil_div

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# 4-bit weights: codes packed two to a byte, the bytes viewed as one of STORAGES; nested scales are in groups.
QUANT_TYPES = ("nf4", "fp4")
BLOCKSIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
STORAGES = (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32)
NESTED_BLOCKSIZE = 256

# 131071 products of 128 * 128 are the most that int32 holds.
LARGEST_K = 131071
# A sum of 1024 products of int8 numbers is at most 2^24: fp32 holds it, and every partial sum, exactly.
EXACT_K = 1024

# Gradient norms that percentile clipping remembers.
GNORM_HISTORY = 100


def as_bytes(packed: Tensor) -> Tensor:
    """The bytes of a packed tensor of any storage dtype, flat."""
    # Contiguous memory may still have odd strides, where sizes are 1; a view of other bytes wants 1.
    return packed.contiguous().as_strided((packed.numel(),), (1,)).view(torch.uint8)


# Rule of an optimizer → number of states. AdEMAMix keeps its two momenta in state1, as [2, *shape].
OPTIMIZER_STATES = {
    "adam": 2,
    "lamb": 2,
    "ademamix": 2,
    "momentum": 1,
    "lars": 1,
    "lion": 1,
    "rmsprop": 1,
    "adagrad": 1,
}
STATE_BLOCKSIZE = 256


class StateFormat(NamedTuple):
    """How an optimizer keeps its states: dtype, the name of the scales' arguments, elements to a scale (None: all)."""

    name: str
    dtype: torch.dtype
    scale: str
    blocksize: int | None

    def scales(self, elements: Any) -> Any:
        """How many scales a state of `elements` elements has."""
        return 1 if self.blocksize is None else ceil_div(elements, self.blocksize)


FP32 = StateFormat("32bit", torch.float32, "", None)
BLOCKWISE = StateFormat("8bit_blockwise", torch.uint8, "absmax", STATE_BLOCKSIZE)
PER_TENSOR = StateFormat("8bit", torch.uint8, "max", None)


def momenta(rule: str) -> tuple[int, ...]:
    """What stands before the parameter's shape in that of state1."""
    return (2,) if rule == "ademamix" else ()


class ParameterLists(NamedTuple):
    """The tensors of an optimizer step, as lists; a form for one parameter is a list of one."""

    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    state1: Sequence[Tensor]
    state2: Sequence[Tensor] | None
    scale1: Sequence[Tensor] | None = None
    scale2: Sequence[Tensor] | None = None
    unorm_vec: Sequence[Tensor] | None = None


def argument_names(form: StateFormat, many: bool) -> dict[str, str]:
    """Field of `ParameterLists` → the argument's name in messages, with `{}` for the position in a list."""
    renamed = {"scale1": f"{form.scale}1", "scale2": f"{form.scale}2"}
    if not many:
        renamed |= {"grads": "g", "params": "p"}
    return {field: renamed.get(field, field) + "[{}]" * many for field in ParameterLists._fields}
