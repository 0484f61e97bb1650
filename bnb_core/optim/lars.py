"""LARS (arXiv:1708.03888): momentum with updates limited by the norm of the parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from .base import KBitOptimizer, refuse_unless_off, without_bits

__all__ = ["LARS", "LARS32bit", "LARS8bit", "PytorchLARS"]


class LARS(KBitOptimizer):
    """LARS. Weight decay is added to the gradient.

    max_unorm: the norm of an update is at most that share of the parameter's, for parameters with 32-bit state; one
    that is all zeros is not limited, or it could never move. A step on 8-bit state is not limited, as in the public
    package, and takes no other value than the default. dampening and nesterov are refused. In the parameter groups
    momentum is the first of `betas`. The arguments that are not said here are those of `KBitOptimizer`.
    """

    rule = "lars"
    default_max_unorm = 0.02

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
        max_unorm: float = 0.02,
        **options: Any,
    ) -> None:
        refuse_unless_off(dampening=dampening, nesterov=nesterov)
        hyperparameters = {"lr": lr, "betas": (momentum, 0), "eps": 0.0, "weight_decay": weight_decay}
        options |= {"optim_bits": optim_bits, "args": args, "min_8bit_size": min_8bit_size, "max_unorm": max_unorm}
        super().__init__(params, hyperparameters, **options)


class LARS8bit(LARS):
    """LARS with 8-bit state."""

    fixed_bits = 8
    __init__ = without_bits(LARS.__init__)


class LARS32bit(LARS):
    """LARS with 32-bit state."""

    fixed_bits = 32
    __init__ = without_bits(LARS.__init__)


class PytorchLARS(torch.optim.Optimizer):
    """LARS in torch's own operations, with dampening and Nesterov momentum; its state has the parameter's dtype.

    The arguments are those of `LARS`. Raises ValueError for one out of range, and for nesterov without momentum or
    with dampening.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        max_unorm: float = 0.02,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        for name, value in (defaults | {"max_unorm": max_unorm}).items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected at least 0")
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(
                f"nesterov is True with momentum {momentum} and dampening {dampening}, "
                "expected momentum above 0 and no dampening"
            )
        super().__init__(params, defaults | {"nesterov": nesterov, "max_unorm": max_unorm})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have gradients, one after the other."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        update = gradient.add(p, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = update.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=1 - group["dampening"])
            buffer = state["momentum_buffer"]
            update = update.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        if group["max_unorm"] > 0:
            largest = group["max_unorm"] * torch.linalg.vector_norm(p, dtype=torch.float32)
            norm = torch.linalg.vector_norm(update, dtype=torch.float32)
            limited = (norm > largest) & (largest > 0)
            update = update * torch.where(limited, largest / norm, 1.0).to(update.dtype)
        p.add_(update, alpha=-group["lr"])
