"""LAMB (arXiv:1904.00962): Adam with updates limited by the norm of the parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer, refuse_unless_off, without_bits

__all__ = ["LAMB", "LAMB32bit", "LAMB8bit"]


class LAMB(KBitOptimizer):
    """LAMB with bias correction and decoupled weight decay.

    max_unorm: the norm of an update is at most that share of the parameter's, for parameters with 32-bit state. A step
    on 8-bit state is not limited, as in the public package, and takes no other value than the default. amsgrad,
    bias_correction=False and adam_w_mode=False are refused. The arguments that are not said here are those of
    `KBitOptimizer`.
    """

    rule = "lamb"
    default_max_unorm = 1.0

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        max_unorm: float = 1.0,
        **options: Any,
    ) -> None:
        refuse_unless_off(amsgrad=amsgrad)
        for name, value in (("bias_correction", bias_correction), ("adam_w_mode", adam_w_mode)):
            if not value:
                raise ValueError(f"{name} is {value}, but the step operators know LAMB with it only")
        hyperparameters = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size, "max_unorm": max_unorm}
        super().__init__(params, hyperparameters, **options)


class LAMB8bit(LAMB):
    """LAMB with 8-bit state."""

    fixed_bits = 8
    __init__ = without_bits(LAMB.__init__)


class LAMB32bit(LAMB):
    """LAMB with 32-bit state."""

    fixed_bits = 32
    __init__ = without_bits(LAMB.__init__)
