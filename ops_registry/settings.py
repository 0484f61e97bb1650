"""What is set for the whole process: which kernels are forced, and what a fall back to the reference does.

Both are context managers. Each change begins a new epoch, and choices of an older one are made again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import torch

from .compositions import COMPOSED
from .kernels import rows

__all__ = ["check_environment", "fallback", "force", "ignore_environment", "new_epoch", "settings"]

FALLBACK_POLICIES = ("error", "warn", "allow")
DEFAULT_POLICY = "warn"


class _Settings:
    """The values in force now, read at every choice; written under the lock only."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.epoch = 0
        self.forced = tuple(n.strip() for n in os.environ.get("BNB_CORE_FORCE", "").split(",") if n.strip())
        self.policy = os.environ.get("BNB_CORE_FALLBACK", "") or DEFAULT_POLICY


settings = _Settings()


def new_epoch() -> None:
    """Has every choice made again."""
    with settings.lock:
        settings.epoch += 1


class _Setting:
    """A context manager for one setting. Those that are entered form a stack, whichever thread they are from: the last
    one counts, and each takes away itself alone.
    """

    _entered: dict[str, list[Any]] = {"forced": [settings.forced], "policy": [settings.policy]}

    def __init__(self, what: str, attribute: str, value: Any) -> None:
        self._what, self._attribute, self._value = what, attribute, value

    def __enter__(self) -> None:
        _refuse_in_compiled_region(self._what)
        self._change(lambda stack: stack.append(self._value))

    def __exit__(self, *exception: Any) -> None:
        def remove_last(stack: list[Any]) -> None:
            del stack[max(i for i, value in enumerate(stack) if value is self._value)]

        self._change(remove_last)

    def _change(self, change: Any) -> None:
        with settings.lock:
            stack = self._entered[self._attribute]
            change(stack)
            setattr(settings, self._attribute, stack[-1])
            settings.epoch += 1


def force(*names: str) -> _Setting:
    """Context manager: operators that have a kernel of one of these names run it, for the whole process.

    `"reference"` forces the reference on every device, `"composed"` what is composed of other operators. An operator
    without a kernel of a forced name chooses as usual; a forced kernel that refuses its inputs raises RuntimeError with
    its reason. `BNB_CORE_FORCE` (names separated by commas) does the same from the start of the process.

    Raises ValueError for a name that no kernel has, RuntimeError inside a compiled region.
    """
    _refuse_in_compiled_region("force")
    if unknown := _unknown(names):
        raise ValueError(unknown)
    return _Setting("force", "forced", names)


def fallback(policy: str) -> _Setting:
    """Context manager: what happens when an operator on an accelerator has no kernel of its own for its inputs.

    `"error"` raises FallbackError, `"warn"` (the default) runs the reference with one FallbackWarning per (operator,
    device, reason), `"allow"` runs it silently. `BNB_CORE_FALLBACK` sets the policy of the process.

    Raises ValueError for another policy, RuntimeError inside a compiled region.
    """
    _refuse_in_compiled_region("fallback")
    if policy not in FALLBACK_POLICIES:
        raise ValueError(f"policy is {policy!r}, expected one of {', '.join(FALLBACK_POLICIES)}")
    return _Setting("fallback", "policy", policy)


def check_environment(hint: str) -> None:
    """Raises ValueError where `BNB_CORE_FALLBACK` is no policy, or `BNB_CORE_FORCE` has names that no kernel has.

    hint: ends that sentence.
    """
    if settings.policy not in FALLBACK_POLICIES:
        raise ValueError(f"BNB_CORE_FALLBACK is {settings.policy!r}, expected one of {', '.join(FALLBACK_POLICIES)}")
    if unknown := _unknown(settings.forced):
        raise ValueError(f"BNB_CORE_FORCE: {unknown}{hint}")


def ignore_environment() -> None:
    """Sets what stands in the environment back to the defaults."""
    with settings.lock:
        _Setting._entered.update(forced=[()], policy=[DEFAULT_POLICY])
        settings.forced, settings.policy = (), DEFAULT_POLICY
        settings.epoch += 1


def _unknown(names: Sequence[str]) -> str:
    """A sentence about the names that no kernel has; empty where there are none."""
    known = dict.fromkeys((*(kernel.name for kernel in rows()), COMPOSED))
    unknown = ", ".join(name for name in names if name not in known)
    return unknown and f"no kernel is named {unknown}; known are {', '.join(known)}"


def _refuse_in_compiled_region(what: str) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(f"bnb_core.{what}() cannot be entered inside a compiled region; enter it around the call")
