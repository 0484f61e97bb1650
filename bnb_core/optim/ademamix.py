"""AdEMAMix (arXiv:2409.03137): Adam with a second, slower momentum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .base import KBitOptimizer, without_bits

__all__ = [
    "AdEMAMix",
    "AdEMAMix32bit",
    "AdEMAMix8bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix32bit",
    "PagedAdEMAMix8bit",
]


class AdEMAMix(KBitOptimizer):
    """AdEMAMix with decoupled weight decay.

    betas: decay of the fast average, of the squares, and of the slow average, whose weight is alpha. t_alpha, t_beta3:
    steps over which alpha grows from 0 and the slow average's decay from that of the fast one, as the paper has it;
    None for no such schedule. The rest is as in `KBitOptimizer`.
    """

    rule = "ademamix"
    number_of_betas = 3

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Any,
    ) -> None:
        hyperparameters = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        hyperparameters |= {"alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        options |= {"optim_bits": optim_bits, "min_8bit_size": min_8bit_size, "is_paged": is_paged}
        super().__init__(params, hyperparameters, **options)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        for name in ("t_alpha", "t_beta3"):
            if group[name] is not None and not group[name] >= 0:
                raise ValueError(f"{name} is {group[name]}, expected None or at least 0")
        if not group["alpha"] >= 0:
            raise ValueError(f"alpha is {group['alpha']}, expected at least 0")
        if group["t_beta3"] and not (0 < group["betas"][0] <= group["betas"][2]):
            raise ValueError(f"betas are {group['betas']}, but t_beta3 needs a first one above 0, up to the third")

    def _coefficients(self, settings: dict[str, Any], step: Tensor) -> tuple[float, float, float, float]:
        beta1, beta2, beta3 = settings["betas"]
        alpha, t_alpha, t_beta3 = settings["alpha"], settings["t_alpha"], settings["t_beta3"]
        if t_alpha or t_beta3:
            t = step.item()
            if t_alpha:
                alpha *= min(t / t_alpha, 1.0)
            if t_beta3 and t < t_beta3:
                beta3 = _between(beta1, beta3, t / t_beta3)
        return float(beta1), float(beta2), float(beta3), float(alpha)


def _between(first: float, last: float, share: float) -> float:
    """A decay between two others: its half-life is about that share of the way from one half-life to the other."""
    if last == first:
        return first
    a, b = math.log(first), math.log(last)
    return math.exp(a * b / ((1 - share) * b + share * a))


class AdEMAMix8bit(AdEMAMix):
    """AdEMAMix with 8-bit state."""

    fixed_bits = 8
    __init__ = without_bits(AdEMAMix.__init__)


class AdEMAMix32bit(AdEMAMix):
    """AdEMAMix with 32-bit state."""

    fixed_bits = 32
    __init__ = without_bits(AdEMAMix.__init__)


class PagedAdEMAMix(AdEMAMix):
    """AdEMAMix with paged state."""

    always_paged = True


class PagedAdEMAMix8bit(AdEMAMix8bit):
    """AdEMAMix with paged 8-bit state."""

    always_paged = True


class PagedAdEMAMix32bit(AdEMAMix32bit):
    """AdEMAMix with paged 32-bit state."""

    always_paged = True
