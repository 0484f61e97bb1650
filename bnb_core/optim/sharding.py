"""State of parameters that are sharded over processes, `torch.distributed.tensor.DTensor`s, as FSDP2 makes them.

A step works on the local shard, and so do its scales. Where all rows have a whole number of blocks and shards are whole
rows, local blocks are those of the full tensor: the state is saved as codes and scales `[rows, blocks of a row]`, both
sharded like the parameter, and resharding moves bits. Elsewhere blocks depend on the number of processes: the state is
saved as fp32 values and quantized again when it is loaded.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops_registry.formats import BLOCKWISE, FP32, STATE_BLOCKSIZE, StateFormat
from . import state as states
from .state import State


def is_imported() -> bool:
    """True if there can be DTensors; torch.distributed is not imported to find out."""
    return "torch.distributed.tensor" in sys.modules


def is_sharded(tensor: Any) -> bool:
    """True for a DTensor."""
    return is_imported() and isinstance(tensor, sys.modules["torch.distributed.tensor"].DTensor)


def local(tensor: Any, like: Any = None) -> Tensor:
    """The shard of this process, without a copy; of a tensor that is placed as `like` is, or is then placed so."""
    if like is not None and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return tensor.to_local()


def saved(rule: str, p: Any, state: State) -> State:
    """The state of a shard as DTensors, without `step`."""
    if states.form_of(state) is FP32 or (states.form_of(state) is BLOCKWISE and _has_whole_rows(p)):
        kept = state
    else:
        blocksize = states.form_of(state).blocksize
        kept = {f"state{i}": states.values(state, i, rule, blocksize) for i in states.numbers(rule)}
    result: State = {}
    for i in states.numbers(rule):
        lead = states.leading(rule, i)
        result[f"state{i}"] = _whole(kept[f"state{i}"], p, lead, p.shape)
        if f"qmap{i}" in kept:
            result[f"qmap{i}"] = kept[f"qmap{i}"]
            rows = _rows_of_scales(p)
            scales = kept[f"absmax{i}"].reshape(*lead, p.to_local().shape[0], rows[1])
            result[f"absmax{i}"] = _whole(scales, p, lead, rows)
    return result


def local_state(name: str, rule: str, form: StateFormat, p: Any, found: State) -> State:
    """The part of a saved state, of DTensors or of full tensors, that belongs to the shard of this process."""
    if not any(map(is_sharded, found.values())):
        # The whole state, as one process saves it. What blocks straddle rows is cut as values, not as codes.
        keep = BLOCKWISE if form is BLOCKWISE and _has_whole_rows(p) else FP32
        found = states.loaded(name, rule, keep, p.shape, found) | {"step": found["step"]}
    result = dict(found)
    for i in states.numbers(rule):
        lead = states.leading(rule, i)
        for key, shape in ((f"state{i}", p.shape), (f"absmax{i}", _rows_of_scales(p))):
            if isinstance(found.get(key), Tensor):
                result[key] = _placed(found[key], p, lead, shape)
    return result


def unsharded(found: State) -> State:
    """A saved state with full tensors in place of DTensors; all processes have to call it."""
    return {key: value.full_tensor() if is_sharded(value) else value for key, value in found.items()}


def _has_whole_rows(p: Any) -> bool:
    """True if the blocks of all shards of a DTensor are blocks of the full tensor."""
    from torch.distributed.tensor import Replicate, Shard

    rows_only = all(type(at) is Replicate or (type(at) is Shard and at.dim == 0) for at in p.placements)
    return rows_only and p.ndim > 1 and math.prod(p.shape[1:]) % STATE_BLOCKSIZE == 0


def _rows_of_scales(p: Any) -> tuple[int, int]:
    return p.shape[0], math.prod(p.shape[1:]) // STATE_BLOCKSIZE


def _placements(p: Any, lead: tuple[int, ...]) -> list[Any]:
    """Those of p, for a tensor with `lead` before its shape."""
    if not lead:
        return list(p.placements)
    moved = [copy.copy(at) for at in p.placements]
    for at in moved:
        if hasattr(at, "dim"):
            object.__setattr__(at, "dim", at.dim + len(lead))
    return moved


def _whole(shard: Tensor, p: Any, lead: tuple[int, ...], shape: Sequence[int]) -> Tensor:
    from torch.distributed.tensor import DTensor

    size = torch.Size((*lead, *shape))
    stride = torch.empty(size, device="meta").stride()
    return DTensor.from_local(shard, p.device_mesh, _placements(p, lead), run_check=False, shape=size, stride=stride)


def _placed(tensor: Any, p: Any, lead: tuple[int, ...], shape: Sequence[int]) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    placements = _placements(p, lead)
    if not is_sharded(tensor):
        return distribute_tensor(tensor.reshape(*lead, *shape), p.device_mesh, placements).to_local()
    return tensor.redistribute(p.device_mesh, placements).to_local()
