"""Which kernel runs: plans, forced kernels, the fall back to the reference, and how often each ran.

A choice is worked out from the kernel table for calls of one signature, and holds until the epoch changes: by a
registration, by `force()` or by `fallback()`. Choosing happens in the call, so that compiled and exported programs obey
both.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from .kernels import Kernel, kernels_for, rows
from .op import NAMESPACE, Op
from .settings import settings

__all__ = [
    "Choice",
    "FallbackError",
    "FallbackWarning",
    "Plan",
    "available_devices",
    "devices",
    "forced_kernel",
    "kernel_counts",
    "plan_of",
    "reset_kernel_counts",
]


class FallbackWarning(UserWarning):
    """An operator ran on the reference on an accelerator."""


class FallbackError(RuntimeError):
    """An operator has no kernel of its own for these inputs, and the fallback policy is `error`."""


# (operator, device, reason) that a FallbackWarning has named.
warned: set[tuple[str, str, str]] = set()


@dataclass
class Choice:
    """The kernels that may run for calls of one signature, best first; the last one always may.

    epoch: the one that it was made in. always: the kernel that runs where no argument can change that, else None.
    """

    plan: Plan
    epoch: int
    kernels: list[Kernel]
    refused: list[tuple[Kernel, str]]
    always: Kernel | None = None


@dataclass
class Plan:
    """One (operator, device): its choices, and how often each kernel ran."""

    op: Op
    device: str
    calls: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def choose(self, args: tuple[Any, ...]) -> Choice:
        """The choice for all calls of the signature that these arguments have, until the epoch changes."""
        epoch = settings.epoch  # read before the table: a row added in between must not count as seen
        forced = forced_kernel(self.op.name, self.device)
        candidates = kernels_for(self.op.name, self.device) if forced is None else (forced,)
        choice = Choice(self, epoch, [], [])
        for kernel in candidates:
            reason = kernel.outside_limits(args)
            if reason is None:
                choice.kernels.append(kernel)
                if kernel.refusal is None:
                    break
            elif forced is not None:
                self._refuse_forced(kernel, reason)
            else:
                choice.refused.append((kernel, reason))
        if len(choice.kernels) == 1 and choice.kernels[0].refusal is None and not self._falls_back(choice.kernels[0]):
            choice.always = choice.kernels[0]
        return choice

    def ask(self, choice: Choice, args: tuple[Any, ...], warn: bool = True) -> Kernel:
        """The first kernel of the choice that does not refuse these arguments."""
        for kernel in choice.kernels:
            if kernel.refusal is None or (reason := kernel.refusal(*args)) is None:
                if self._falls_back(kernel):
                    self._fall_back(choice, args, warn)
                return kernel
            if kernel.name in settings.forced:
                self._refuse_forced(kernel, reason)
        raise NotImplementedError(f"{NAMESPACE}::{self.op.name} has no kernel for device {self.device}")

    def chosen(self, args: tuple[Any, ...]) -> Kernel:
        """The kernel that a call with these arguments runs, without a warning where that is the reference.

        Raises as the call does.
        """
        return self.ask(self.choose(args), args, warn=False)

    def _falls_back(self, kernel: Kernel) -> bool:
        """True where this kernel in the place of a better one is worth a word."""
        if settings.policy == "allow" or kernel.name in settings.forced:
            return False
        return kernel.is_reference and self.device != "cpu"

    def _refuse_forced(self, kernel: Kernel, reason: str) -> None:
        raise RuntimeError(f"{NAMESPACE}::{self.op.name}: the forced kernel {kernel.name} refuses: {reason}")

    def _fall_back(self, choice: Choice, args: tuple[Any, ...], warn: bool) -> None:
        refusals = [f"{kernel.name}: {reason}" for kernel, reason in choice.refused]
        refusals += [f"{k.name}: {k.refusal(*args)}" for k in choice.kernels if k.refusal is not None]
        reason = "; ".join(refusals) or f"no kernel is registered for device {self.device}"
        sentence = f"{NAMESPACE}::{self.op.name} on {self.device} runs on the slow reference: {reason}"
        if settings.policy == "error":
            raise FallbackError(f"{sentence} (the fallback policy is 'error')")
        if warn and (self.op.name, self.device, reason) not in warned:
            warnings.warn(sentence, FallbackWarning, stacklevel=2)
            warned.add((self.op.name, self.device, reason))


_plans: dict[tuple[str, str], Plan] = {}


def plan_of(op: Op, device: str) -> Plan:
    """The one plan of an operator on a device type."""
    plan = _plans.get((op.name, device))
    return _plans.setdefault((op.name, device), Plan(op, device)) if plan is None else plan


def forced_kernel(op: str, device: str) -> Kernel | None:
    """The row that `force` selects for an operator on a device, if it has one of a forced name."""
    return next((k for name in settings.forced for k in kernels_for(op, device) if k.name == name), None)


def kernel_counts() -> dict[tuple[str, str, str], int]:
    """How often each kernel ran since the start or `reset_kernel_counts()`: (operator, device type, kernel) → calls."""
    return {(op, device, name): n for (op, device), plan in _plans.items() for name, n in plan.calls.items()}


def reset_kernel_counts() -> None:
    """Sets all counts of `kernel_counts()` to zero."""
    for plan in _plans.values():
        plan.calls.clear()


def devices() -> tuple[str, ...]:
    """Device types that have kernels of their own."""
    return tuple(dict.fromkeys(kernel.device for kernel in rows() if not kernel.is_reference))


def available_devices() -> list[str]:
    """Device types that can compute here: the cpu, the accelerator that torch sees, and those of the kernel table.

    The reference runs on each of them.
    """
    found = ["cpu"]
    if torch.accelerator.is_available() and (accelerator := torch.accelerator.current_accelerator()) is not None:
        found.append(accelerator.type)
    return list(dict.fromkeys([*found, *filter(_is_available, devices())]))


def _is_available(device: str) -> bool:
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # torch knows no such device until its vendor's package is imported
        return False
    return bool(getattr(module, "is_available", lambda: False)())
