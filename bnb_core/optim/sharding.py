"""State of parameters that are sharded over processes, `torch.distributed.tensor.DTensor`s, as FSDP2 makes them.

A step works on the local shard, and so do its scales. Where all rows have a whole number of blocks and shards are whole
rows, local blocks are those of the full tensor: the state is saved as codes and scales `[rows, blocks of a row]`, both
sharded like the parameter, and resharding moves bits. Elsewhere blocks depend on the number of processes: the state is
saved as fp32 values and quantized again when it is loaded.
"""

from __future__ import annotations

import math
import sys
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
    """The shard of this process, without a copy; of a tensor that is placed as `like` is, or is then placed so.

    A tensor that is not sharded is its own shard.
    """
    if not is_sharded(tensor):
        return tensor
    if like is not None and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return tensor.to_local()


def saved(rule: str, p: Any, state: State) -> State:
    """The state of a shard as DTensors, without `step`."""
    form = states.form_of(state)
    if form is not FP32 and not (form is BLOCKWISE and _has_whole_rows(p)):
        state = {f"state{i}": states.values(state, i, rule, form.blocksize) for i in states.numbers(rule)}
    result = {key: value for key, value in state.items() if key.startswith("qmap")}
    for key, (lead, shape) in _shapes(rule, p).items():
        if key in state:
            scales = key.startswith("absmax")
            shard = state[key].reshape(*lead, p.to_local().shape[0], shape[1]) if scales else state[key]
            result[key] = _whole(shard, p, lead, shape)
    return result


def local_state(name: str, rule: str, form: StateFormat, p: Any, found: State) -> State:
    """The part of a saved state, of DTensors or of full tensors, that belongs to the shard of this process."""
    if not _is_as_saved(rule, p, found):
        # Blocks that straddle shards are cut as values, not as codes.
        keep = BLOCKWISE if form is BLOCKWISE and _has_whole_rows(p) else FP32
        others = {key: value for key, value in found.items() if key not in states.TENSOR_KEYS}
        found = others | states.loaded(name, rule, keep, p.shape, unsharded(found))
    shapes = _shapes(rule, p)
    return found | {key: _placed(found[key], p, *at) for key, at in shapes.items() if key in found}


def unsharded(found: State) -> State:
    """A saved state with full tensors in place of DTensors; all processes have to call it."""
    return {key: value.full_tensor() if is_sharded(value) else value for key, value in found.items()}


def _is_as_saved(rule: str, p: Any, found: State) -> bool:
    """True if a state is as `saved` makes it for a parameter like p, whatever the number of processes was."""
    for key, (lead, shape) in _shapes(rule, p).items():
        tensor = found.get(key)
        if tensor is not None and not (
            is_sharded(tensor) and tensor.shape == (*lead, *shape) and tensor.device_mesh == p.device_mesh
        ):
            return False
    return "qmap1" not in found or _has_whole_rows(p)


def _has_whole_rows(p: Any) -> bool:
    """True if the blocks of all shards of a DTensor are blocks of the full tensor."""
    from torch.distributed.tensor import Replicate, Shard

    rows_only = all(type(at) is Replicate or (type(at) is Shard and at.dim == 0) for at in p.placements)
    return rows_only and p.ndim > 1 and math.prod(p.shape[1:]) % STATE_BLOCKSIZE == 0


def _shapes(rule: str, p: Any) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of what `saved` makes DTensors of, each as what stands before the sharded part, and that part."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for i in states.numbers(rule):
        lead = states.leading(rule, i)
        shapes[f"state{i}"] = lead, tuple(p.shape)
        if _has_whole_rows(p):
            shapes[f"absmax{i}"] = lead, (p.shape[0], math.prod(p.shape[1:]) // STATE_BLOCKSIZE)
    return shapes


def _placements(p: Any, lead: tuple[int, ...]) -> list[Any]:
    """Those of p, for a tensor with `lead` before its shape."""
    return [_moved(at, len(lead)) if lead and hasattr(at, "dim") else at for at in p.placements]


def _moved(at: Any, by: int) -> Any:
    strided = {"split_factor": at.split_factor} if hasattr(at, "split_factor") else {}
    return type(at)(at.dim + by, **strided)


def _whole(shard: Tensor, p: Any, lead: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor

    size = torch.Size((*lead, *shape))
    stride = torch.empty(size, device="meta").stride()
    return DTensor.from_local(shard, p.device_mesh, _placements(p, lead), run_check=False, shape=size, stride=stride)


def _placed(tensor: Any, p: Any, lead: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    placements = _placements(p, lead)
    if is_sharded(tensor):
        return tensor.redistribute(p.device_mesh, placements).to_local()
    return distribute_tensor(tensor.reshape((*lead, *shape)), p.device_mesh, placements).to_local()
