"""Adagrad (Duchi, Hazan and Singer, 2011)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer, refuse_unless_off

__all__ = ["Adagrad", "Adagrad32bit", "Adagrad8bit"]


class Adagrad(KBitOptimizer):
    """Adagrad, as torch's. Weight decay is added to the gradient.

    lr_decay and initial_accumulator_value are refused. The arguments that are not said here are those of
    `KBitOptimizer`; a class that says the bits in its name takes 32 bits as nothing said.
    """

    rule = "adagrad"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        **options: Any,
    ) -> None:
        refuse_unless_off(lr_decay=lr_decay, initial_accumulator_value=initial_accumulator_value)
        hyperparameters = {"lr": lr, "betas": (0.0, 0.0), "eps": eps, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size}
        super().__init__(params, hyperparameters, **options)


class Adagrad8bit(Adagrad):
    """Adagrad with 8-bit state."""

    fixed_bits = 8


class Adagrad32bit(Adagrad):
    """Adagrad with 32-bit state."""

    fixed_bits = 32
