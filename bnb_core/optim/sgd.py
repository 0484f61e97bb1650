"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer, refuse_unless_off, without_bits

__all__ = ["SGD", "SGD32bit", "SGD8bit"]


class SGD(KBitOptimizer):
    """SGD with heavy-ball momentum, as torch's. Weight decay is added to the gradient.

    dampening and nesterov are refused. In the parameter groups momentum is the first of `betas`. The arguments that
    are not said here are those of `KBitOptimizer`.
    """

    rule = "momentum"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        **options: Any,
    ) -> None:
        refuse_unless_off(dampening=dampening, nesterov=nesterov)
        hyperparameters = {"lr": lr, "betas": (momentum, 0), "eps": 0.0, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size}
        super().__init__(params, hyperparameters, **options)


class SGD8bit(SGD):
    """SGD with 8-bit state."""

    fixed_bits = 8
    __init__ = without_bits(SGD.__init__)


class SGD32bit(SGD):
    """SGD with 32-bit state."""

    fixed_bits = 32
    __init__ = without_bits(SGD.__init__)
