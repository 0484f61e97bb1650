"""The levels of instructions that this CPU runs, and a family's kernels at each of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TypeVar

from . import _native

Family = TypeVar("Family")

# The levels that this CPU runs, best first.
AVAILABLE: tuple[str, ...] = tuple(level for level, missing in _native.LEVELS.items() if not missing)


def at_each_level(family: Callable[[ModuleType], Family]) -> SimpleNamespace:
    """`family` made of the native functions of each level: an attribute for each."""
    return SimpleNamespace(**{level: family(getattr(_native, level)) for level in AVAILABLE})
