"""RMSprop (Tieleman and Hinton, 2012)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer, refuse_unless_off, without_bits

__all__ = ["RMSprop", "RMSprop32bit", "RMSprop8bit"]


class RMSprop(KBitOptimizer):
    """RMSprop without momentum, as torch's. Weight decay is added to the gradient.

    alpha: decay of the average of squares; in the parameter groups it is the first of `betas`. momentum and centered
    are refused. The arguments that are not said here are those of `KBitOptimizer`.
    """

    rule = "rmsprop"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        **options: Any,
    ) -> None:
        refuse_unless_off(momentum=momentum, centered=centered)
        hyperparameters = {"lr": lr, "betas": (alpha, 0), "eps": eps, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size}
        super().__init__(params, hyperparameters, **options)


class RMSprop8bit(RMSprop):
    """RMSprop with 8-bit state."""

    fixed_bits = 8
    __init__ = without_bits(RMSprop.__init__)


class RMSprop32bit(RMSprop):
    """RMSprop with 32-bit state."""

    fixed_bits = 32
    __init__ = without_bits(RMSprop.__init__)
