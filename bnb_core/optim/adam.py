"""Adam (arXiv:1412.6980) and AdamW (arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from .base import KBitOptimizer

__all__ = ["Adam", "Adam32bit", "Adam8bit", "AdamW", "AdamW32bit", "AdamW8bit"]


class Adam(KBitOptimizer):
    """Adam with bias correction. Weight decay is decoupled, as in AdamW and in the public package's Adam.

    The arguments and their order are the public package's. params: parameters or parameter groups, fp32, fp16 or bf16.
    lr: a number or a 0-dim tensor. optim_bits: 8 or 32 bits of state; a class that says the bits in its name takes 32,
    the default, as nothing said. min_8bit_size: parameters with fewer elements keep 32-bit state. `amsgrad=True`,
    `args` and `is_paged=True` are refused with ValueError.
    """

    rule = "adam"
    fixed_bits: ClassVar[int | None] = None

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
    ) -> None:
        if amsgrad:
            raise ValueError("amsgrad is True, but the step operators keep no maximum of the second moment")
        if args is not None:
            raise ValueError("args is given, but options are given one by one, as optim_bits and min_8bit_size")
        if is_paged:
            raise ValueError("is_paged is True, but this version keeps no paged state")
        bits = optim_bits if self.fixed_bits is None else self.fixed_bits
        if optim_bits not in (32, bits):
            raise ValueError(f"optim_bits is {optim_bits}, but {type(self).__name__} keeps {bits}-bit state")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
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
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, *args, **options)


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
