"""The limit of what is bound by memory: a copy that reads and writes as many bytes in all."""

from __future__ import annotations

from typing import Protocol

import torch

from ..work import Contestant, Run

__all__ = ["COPY", "Moves"]


class Moves(Protocol):
    """Inputs that know how many bytes the work has to read and write at least."""

    @property
    def traffic(self) -> int: ...


def _copy(inputs: Moves) -> Run:
    source = torch.ones(inputs.traffic // 8)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


COPY = Contestant("copy", _copy)
