"""Adam (arXiv:1412.6980) and AdamW (arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer, refuse_unless_off

__all__ = [
    "Adam",
    "Adam32bit",
    "Adam8bit",
    "AdamW",
    "AdamW32bit",
    "AdamW8bit",
    "PagedAdam",
    "PagedAdam32bit",
    "PagedAdam8bit",
    "PagedAdamW",
    "PagedAdamW32bit",
    "PagedAdamW8bit",
]


class Adam(KBitOptimizer):
    """Adam with bias correction. Weight decay is decoupled, as in AdamW and in the public package's Adam.

    params: parameters or parameter groups, fp32, fp16 or bf16. lr: a number or a 0-dim tensor. amsgrad is refused. The
    other arguments are those of `KBitOptimizer`; a class that says the bits in its name takes 32 bits, the default, as
    nothing said.
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
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Any,
    ) -> None:
        refuse_unless_off(amsgrad=amsgrad)
        hyperparameters = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size, "is_paged": is_paged}
        super().__init__(params, hyperparameters, **options)


class AdamW(Adam):
    """Adam with a default weight decay of 0.01."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, optim_bits, args, min_8bit_size, is_paged, **options
        )


class Adam8bit(Adam):
    """Adam with 8-bit state."""

    fixed_bits = 8


class Adam32bit(Adam):
    """Adam with 32-bit state."""

    fixed_bits = 32


class AdamW8bit(AdamW):
    """AdamW with 8-bit state."""

    fixed_bits = 8


class AdamW32bit(AdamW):
    """AdamW with 32-bit state."""

    fixed_bits = 32


class PagedAdam(Adam):
    """Adam with paged state."""

    always_paged = True


class PagedAdam8bit(Adam8bit):
    """Adam with paged 8-bit state."""

    always_paged = True


class PagedAdam32bit(Adam32bit):
    """Adam with paged 32-bit state."""

    always_paged = True


class PagedAdamW(AdamW):
    """AdamW with paged state."""

    always_paged = True


class PagedAdamW8bit(AdamW8bit):
    """AdamW with paged 8-bit state."""

    always_paged = True


class PagedAdamW32bit(AdamW32bit):
    """AdamW with paged 32-bit state."""

    always_paged = True
