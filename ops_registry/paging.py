"""Memory that a device can push out to the host when it needs room, where a backend has such memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["PagedMemory", "paged_memory", "register_paged_memory"]


class PagedMemory(Protocol):
    """What a backend offers under the name `paged_memory`: a function without arguments that returns one of these."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A zeroed tensor whose pages can leave the device."""

    def prefetch(self, tensor: Tensor) -> None:
        """Brings the pages of a tensor back, in the order of the current stream, without waiting for them.

        Does nothing for a tensor that `zeros` did not make.
        """


_offered: dict[str, Callable[[], PagedMemory]] = {}


def register_paged_memory(device: str, offer: Callable[[], PagedMemory]) -> None:
    """Registers what a device type has; the first one stays."""
    _offered.setdefault(device, offer)


def paged_memory(device: torch.device) -> PagedMemory | None:
    """The paged memory of a device, if a backend has such for its type."""
    offer = _offered.get(device.type)
    return None if offer is None else offer()
