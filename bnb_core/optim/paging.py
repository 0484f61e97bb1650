"""Where state lives: ordinary memory, or memory that a device can push out to the host."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..ops_registry import paged_memory
from .state import State, Zeros

__all__ = ["prefetch", "state_memory", "to_paged_memory"]

# Below this many elements paging saves nothing; the public package's number.
SMALLEST_PAGED = 100_000

# What of a state is paged; scales and codebooks are not.
VALUES = ("state1", "state2")

_told: set[str] = set()


def state_memory(device: torch.device, paged: bool) -> Zeros:
    """What makes zeroed tensors on a device: `(shape, dtype) -> tensor`.

    Where the device has no paged memory, ordinary memory is used, and a warning says so once.
    """
    memory = paged_memory(device) if paged else None
    if paged and memory is None and device.type not in _told:
        _told.add(device.type)
        warnings.warn(
            f"is_paged is True, but no backend has paged memory for {device.type}: state is kept in ordinary memory",
            stacklevel=7,
        )

    def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if memory is not None and torch.Size(shape).numel() >= SMALLEST_PAGED:
            return memory.zeros(shape, dtype, device)
        return torch.zeros(shape, dtype=dtype, device=device)

    return zeros


def to_paged_memory(state: State, device: torch.device) -> State:
    """A state with what is large of its values in paged memory, where the device has such."""
    if paged_memory(device) is None:
        return state
    zeros = state_memory(device, paged=True)
    return {k: zeros(tuple(v.shape), v.dtype).copy_(v) if k in VALUES else v for k, v in state.items()}


def prefetch(state: State, device: torch.device) -> None:
    """Brings what is paged of a parameter's state to its device."""
    memory = paged_memory(device)
    if memory is not None:
        for name in VALUES:
            if name in state and state[name].numel() >= SMALLEST_PAGED:
                memory.prefetch(state[name])
