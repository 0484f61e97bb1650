"""The base classes, and how the named optimizers are made from bnb_core's."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterable
from typing import Any

import bnb_core
from bnb_core.ops_registry import OPTIMIZER_STATES
from bnb_core.optim import GlobalOptimManager, KBitOptimizer

from ..utils import sync_gpu

__all__ = ["GlobalOptimManager", "MockArgs", "Optimizer1State", "Optimizer2State", "Optimizer8bit", "sync_gpu"]


class MockArgs:
    """A dictionary read by attributes."""

    def __init__(self, initial_data: dict[str, Any]) -> None:
        self.__dict__.update(initial_data)


class _Read(KBitOptimizer):
    """What integrations read of an optimizer."""

    @property
    def optim_bits(self) -> int:
        """Bits of state."""
        return self.defaults["optim_bits"]

    @property
    def is_paged(self) -> bool:
        """True where large state is in paged memory."""
        return self.defaults["is_paged"]

    @property
    def args(self) -> MockArgs:
        """The options as attributes."""
        return MockArgs(self.defaults)


class Optimizer8bit(_Read, metaclass=ABCMeta):
    """Base class of all: an optimizer is an instance of it, and of one of the two classes below."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        optim_bits: int = 32,
        is_paged: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, defaults, optim_bits=optim_bits, is_paged=is_paged, **options)


class _ByRule(Optimizer8bit):
    """An optimizer by the name of its rule."""

    states: int

    def __init__(
        self,
        optimizer_name: str,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, ...] = (0.9, 0.0),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        is_paged: bool = False,
        **options: Any,
    ) -> None:
        known = [name for name, states in OPTIMIZER_STATES.items() if states == self.states and name != "ademamix"]
        if optimizer_name not in known:
            raise ValueError(f"optimizer_name is {optimizer_name!r}, expected one of {', '.join(known)}")
        self.rule = optimizer_name  # type: ignore[misc]  # elsewhere it is the class's
        hyperparameters = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options |= {"args": args, "min_8bit_size": min_8bit_size, "max_unorm": max_unorm, "skip_zeros": skip_zeros}
        super().__init__(params, hyperparameters, optim_bits, is_paged, **options)


class Optimizer1State(_ByRule):
    """An optimizer with one tensor of state, by the name of its rule."""

    states = 1


class Optimizer2State(_ByRule):
    """An optimizer with two tensors of state, by the name of its rule; AdEMAMix, which has schedules, is a class."""

    states = 2

    def __init__(
        self,
        optimizer_name: str,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *rest: Any,
        **options: Any,
    ) -> None:
        super().__init__(optimizer_name, params, lr, betas, eps, weight_decay, *rest, **options)


def family(module: dict[str, Any], base: type[Optimizer8bit], rule: str, paged: bool = False) -> None:
    """Gives a module the classes of a rule: subclasses of bnb_core's that belong to it and count as those of `base`.

    Integrations look for `bitsandbytes` in the name of an optimizer's class.
    """
    names = [prefix + rule + bits for prefix in (("", "Paged") if paged else ("",)) for bits in ("", "8bit", "32bit")]
    for name in names:
        ours = getattr(bnb_core.optim, name)
        made = type(name, (ours, _Read), {"__module__": module["__name__"], "__doc__": ours.__doc__})
        base.register(made)
        module[name] = made
    module["__all__"] = names
