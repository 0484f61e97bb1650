"""Adam (arXiv:1412.6980) and AdamW (arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer

__all__ = ["Adam", "Adam32bit", "Adam8bit", "AdamW", "AdamW32bit", "AdamW8bit"]


class Adam(KBitOptimizer):
    """Adam with bias correction. Weight decay is decoupled, as in AdamW and in the public package's Adam.

    params: parameters or parameter groups, fp32, fp16 or bf16. lr: a number or a 0-dim tensor. optim_bits: 8 or 32 bits
    of state; None is what the class's name says. min_8bit_size: parameters with fewer elements keep 32-bit state.
    `amsgrad=True` is refused with ValueError.
    """

    rule = "adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        optim_bits: int | None = None,
        min_8bit_size: int = 4096,
    ) -> None:
        if amsgrad:
            raise ValueError("amsgrad is True, but the step operators keep no maximum of the second moment")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        bits = self.bits if optim_bits is None else optim_bits
        super().__init__(params, defaults | {"optim_bits": bits, "min_8bit_size": min_8bit_size})


class AdamW(Adam):
    """Adam with a default weight decay of 0.01."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)


class Adam8bit(Adam):
    """Adam with 8-bit state."""

    bits = 8


class Adam32bit(Adam):
    """Adam with 32-bit state."""

    bits = 32


class AdamW8bit(AdamW):
    """AdamW with 8-bit state."""

    bits = 8


class AdamW32bit(AdamW):
    """AdamW with 32-bit state."""

    bits = 32
