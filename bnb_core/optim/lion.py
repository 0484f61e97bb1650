"""Lion (arXiv:2302.06675)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer, without_bits

__all__ = ["Lion", "Lion32bit", "Lion8bit", "PagedLion", "PagedLion32bit", "PagedLion8bit"]


class Lion(KBitOptimizer):
    """Lion: steps of one size, in the sign of an average of gradients. Weight decay is decoupled.

    The arguments that are not said here are those of `KBitOptimizer`.
    """

    rule = "lion"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Any,
    ) -> None:
        hyperparameters = {"lr": lr, "betas": betas, "eps": 0.0, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size, "is_paged": is_paged}
        super().__init__(params, hyperparameters, **options)


class Lion8bit(Lion):
    """Lion with 8-bit state."""

    fixed_bits = 8
    __init__ = without_bits(Lion.__init__)


class Lion32bit(Lion):
    """Lion with 32-bit state."""

    fixed_bits = 32
    __init__ = without_bits(Lion.__init__)


class PagedLion(Lion):
    """Lion with paged state."""

    always_paged = True


class PagedLion8bit(Lion8bit):
    """Lion with paged 8-bit state."""

    always_paged = True


class PagedLion32bit(Lion32bit):
    """Lion with paged 32-bit state."""

    always_paged = True
