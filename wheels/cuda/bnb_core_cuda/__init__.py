"""The native kernels of bnb_core for NVIDIA GPUs, compiled; their operators are in bnb_core.backends.cuda."""

from __future__ import annotations

from functools import cache

import torch

from bnb_core.backends.cuda import rows, too_new
from bnb_core.backends.cuda.paging import ManagedMemory
from bnb_core.ops_registry import BackendUnavailable

API_VERSION = 1

KERNELS = rows(f"{__name__}.kernels")


def is_available() -> bool:
    """True where torch finds an NVIDIA GPU; raises BackendUnavailable where it does not, or its driver is too old."""
    if not (torch.version.cuda and torch.cuda.is_available()):
        raise BackendUnavailable("torch finds no NVIDIA GPU")
    from . import _native

    if (sentence := too_new(_native)) is not None:
        raise BackendUnavailable(sentence)
    return True


@cache
def paged_memory() -> ManagedMemory:
    """What discovery registers for the devices of this backend."""
    from . import _native

    return ManagedMemory(_native)
