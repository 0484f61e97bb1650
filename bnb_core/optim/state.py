"""The state of one parameter: its format, its values, and the layouts it is found in when it is loaded.

A state is a dict: `step`, then for each of the rule's states `state1` (`state2`), and with 8 bits the codebook `qmap1`
and the scales, `absmax1` (one per block of 256) or `max1` (one per tensor).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..ops_registry.checks import ceil_div
from ..ops_registry.codebooks import dynamic_map
from ..ops_registry.formats import (
    BLOCKWISE,
    FP32,
    GNORM_HISTORY,
    OPTIMIZER_STATES,
    PER_TENSOR,
    STATE_BLOCKSIZE,
    StateFormat,
    momenta,
)

State: TypeAlias = dict[str, Any]

# Block size of older versions of the public package.
OLDER_BLOCKSIZE = 2048

# Tensors that keep their dtype whatever the parameter's is. `new_max` is a second buffer of older versions.
NUMBERED = ("state", "qmap", "absmax", "max", "new_max")
TENSOR_KEYS = (*(f"{key}{i}" for i in (1, 2) for key in NUMBERED), "unorm_vec", "gnorm_vec")

Zeros: TypeAlias = Callable[[tuple[int, ...], torch.dtype], Tensor]


def numbers(rule: str) -> range:
    """1, or 1 and 2."""
    return range(1, OPTIMIZER_STATES[rule] + 1)


def leading(rule: str, i: int) -> tuple[int, ...]:
    """What stands before the parameter's shape in that of state `i`."""
    return momenta(rule) if i == 1 else ()


def code(i: int, device: torch.device) -> Tensor:
    """The codebook of state `i`: signed for the first, shared by all parameters of a device."""
    return dynamic_map(signed=i == 1, device=device)


def form_of(state: State) -> StateFormat:
    """The format that a state is in, by its keys."""
    if "qmap1" not in state:
        return FP32
    return BLOCKWISE if "absmax1" in state else PER_TENSOR


def zeroed(rule: str, form: StateFormat, shape: torch.Size, device: torch.device, zeros: Zeros) -> State:
    """A state of zeros, without `step`. zeros: makes the tensor of a given shape and dtype that holds values."""
    state: State = {}
    for i in numbers(rule):
        state[f"state{i}"] = zeros((*leading(rule, i), *shape), form.dtype)
        if form.scale:
            state[f"qmap{i}"] = code(i, device)
            scales = scale_shape(rule, i, form, shape)
            state[f"{form.scale}{i}"] = torch.zeros(scales, dtype=torch.float32, device=device)
    return state


def scale_shape(rule: str, i: int, form: StateFormat, shape: torch.Size) -> tuple[int, ...]:
    """The shape of the scales of state `i`."""
    count = form.scales(shape.numel())
    if form is PER_TENSOR:
        return leading(rule, i) or (count,)
    return (*leading(rule, i), count)


def new_gradient_norms(device: torch.device) -> Tensor:
    """What percentile clipping remembers before the first gradient: nothing that would clip."""
    return torch.full((GNORM_HISTORY,), math.inf, dtype=torch.float32, device=device)


def moments(tensor: Tensor, rule: str, i: int) -> tuple[Tensor, ...]:
    """The moments in a tensor like state `i`: two in the first of AdEMAMix, else one."""
    return tensor.unbind(0) if leading(rule, i) else (tensor,)


def values(state: State, i: int, rule: str, blocksize: int | None) -> Tensor:
    """State `i` in fp32. blocksize: elements to a scale, None for all of them."""
    kept = state[f"state{i}"]
    if "qmap1" not in state or not kept.numel():
        return kept.float()
    parts = moments(kept, rule, i)
    scales = state[f"absmax{i}" if f"absmax{i}" in state else f"max{i}"].reshape(-1).chunk(len(parts))
    size = blocksize or max(parts[0].numel(), 1)
    dequantize = torch.ops.bnb_core.dequantize_blockwise.default
    dense = [dequantize(q, s, state[f"qmap{i}"], size, torch.float32) for q, s in zip(parts, scales, strict=True)]
    return torch.stack(dense).view(kept.shape)


def coded(value: Tensor, i: int, rule: str, form: StateFormat) -> State:
    """State `i` of the given fp32 values, in a format."""
    if form is FP32:
        return {f"state{i}": value}
    parts = moments(value, rule, i)
    shape, qmap = parts[0].shape, code(i, value.device)
    quantize = torch.ops.bnb_core.quantize_blockwise.default
    pairs = [quantize(part, qmap, form.blocksize or max(shape.numel(), 1)) for part in parts]
    codes, scales = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    if form is PER_TENSOR and not shape.numel():
        scales = scales.new_zeros(len(parts))
    scale = scales.reshape(scale_shape(rule, i, form, shape))
    return {f"state{i}": codes.view(value.shape), f"qmap{i}": qmap, f"{form.scale}{i}": scale}


def loaded(name: str, rule: str, form: StateFormat, shape: torch.Size, found: State) -> State:
    """A state as it was saved, in the given format, without `step`; bits are kept where it already is in that format.

    name: what messages call it. shape: the parameter's. Scales of older versions, one per 2048 elements, are known by
    their number. Raises ValueError for a state that is not one of `rule`: its keys, shapes, dtypes, or codebooks.
    """
    of = form_of(found)
    keys = [f"{key}{i}" for i in numbers(rule) for key in ("state", *(("qmap", of.scale) if of.scale else ()))]
    tensors = {key for key in found if key in TENSOR_KEYS and not key.startswith("new_max")}
    if "step" not in found or tensors - {"unorm_vec", "gnorm_vec"} != set(keys):
        raise ValueError(f"{name} has {', '.join(map(str, found))}; expected step, {', '.join(keys)}")
    if not isinstance(found["step"], (int, float, Tensor)):
        raise ValueError(f"{name}: step is {found['step']!r}, expected a number")
    blocksizes = {_checked(name, rule, of, shape, found, i) for i in numbers(rule)}
    if len(blocksizes) > 1:
        raise ValueError(f"{name} has one scale per {sorted(map(str, blocksizes))} elements, expected one block size")
    (blocksize,) = blocksizes
    state: State = {key: found[key] for key in ("unorm_vec", "gnorm_vec") if key in found}
    for i in numbers(rule):
        if (of, blocksize) != (form, form.blocksize):
            state |= coded(values(found, i, rule, blocksize), i, rule, form)
            continue
        state[f"state{i}"] = found[f"state{i}"]
        if form.scale:
            state[f"qmap{i}"] = code(i, found[f"qmap{i}"].device)
            state[f"{form.scale}{i}"] = found[f"{form.scale}{i}"].reshape(scale_shape(rule, i, form, shape))
    return state


def _checked(name: str, rule: str, form: StateFormat, shape: torch.Size, found: State, i: int) -> int | None:
    """The block size of state `i`, which is all right otherwise."""
    value, expected = found[f"state{i}"], (*leading(rule, i), *shape)
    if (tuple(value.shape), value.dtype) != (expected, form.dtype):
        raise ValueError(f"{name}: state{i} is {value.dtype} {tuple(value.shape)}, expected {form.dtype} {expected}")
    if not form.scale:
        return None
    if not torch.equal(found[f"qmap{i}"].cpu(), code(i, torch.device("cpu"))):
        raise ValueError(f"{name}: qmap{i} is not the dynamic map, which this optimizer's state is coded in")
    scales, parts = found[f"{form.scale}{i}"].numel(), math.prod(leading(rule, i))
    if (
        form is BLOCKWISE
        and scales == parts * ceil_div(shape.numel(), OLDER_BLOCKSIZE)
        and shape.numel() > STATE_BLOCKSIZE
    ):
        return OLDER_BLOCKSIZE
    wanted = parts * form.scales(shape.numel())
    if scales != wanted:
        each = f"{form.blocksize} elements" if form.blocksize else "tensor"
        raise ValueError(f"{name}: {form.scale}{i} has {scales} scales, expected {wanted}, one per {each}")
    return form.blocksize
