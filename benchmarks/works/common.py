"""What several families use: operators by package, and the copy that is the limit of what is bound by memory."""

from __future__ import annotations

import importlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ..work import OURS, Contestant, Run

__all__ = ["BITSANDBYTES", "COPY", "OURS", "Moves", "op_of", "torchao_nf4"]

BITSANDBYTES = "bitsandbytes"


def op_of(package: str, name: str) -> Any:
    """An operator of a package, which is imported; its namespace is called like the package."""
    importlib.import_module(package)
    return getattr(getattr(torch.ops, package), name)


def torchao_nf4(A: Tensor, blocksize: int) -> Run:
    """torchao's NF4 quantizer. It quantizes its scales too, always, in groups that have to divide their number."""
    from torchao.quantization import to_nf4

    group = math.gcd(256, A.numel() // blocksize)
    return lambda: to_nf4(A, blocksize, group)


class Moves(Protocol):
    """Inputs that know how many bytes the work has to read and write at least."""

    @property
    def traffic(self) -> int: ...


def _copy(inputs: Moves) -> Run:
    source = torch.ones(inputs.traffic // 8)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


# Reads and writes as many bytes in all as the work has to.
COPY = Contestant("copy", _copy)
