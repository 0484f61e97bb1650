"""Optimizers with 8-bit or 32-bit state (arXiv:2110.02861).

Each is an update rule plus a state format. A class is imported when it is asked for; `create` makes one by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adagrad import Adagrad, Adagrad8bit, Adagrad32bit
    from .adam import (
        Adam,
        Adam8bit,
        Adam32bit,
        AdamW,
        AdamW8bit,
        AdamW32bit,
        PagedAdam,
        PagedAdam8bit,
        PagedAdam32bit,
        PagedAdamW,
        PagedAdamW8bit,
        PagedAdamW32bit,
    )
    from .ademamix import (
        AdEMAMix,
        AdEMAMix8bit,
        AdEMAMix32bit,
        PagedAdEMAMix,
        PagedAdEMAMix8bit,
        PagedAdEMAMix32bit,
    )
    from .base import KBitOptimizer
    from .factory import create
    from .lamb import LAMB, LAMB8bit, LAMB32bit
    from .lars import LARS, LARS8bit, LARS32bit, PytorchLARS
    from .lion import Lion, Lion8bit, Lion32bit, PagedLion, PagedLion8bit, PagedLion32bit
    from .overrides import GlobalOptimManager
    from .rmsprop import RMSprop, RMSprop8bit, RMSprop32bit
    from .sgd import SGD, SGD8bit, SGD32bit

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdEMAMix32bit",
    "AdEMAMix8bit",
    "Adagrad",
    "Adagrad32bit",
    "Adagrad8bit",
    "Adam",
    "Adam32bit",
    "Adam8bit",
    "AdamW",
    "AdamW32bit",
    "AdamW8bit",
    "GlobalOptimManager",
    "KBitOptimizer",
    "LAMB32bit",
    "LAMB8bit",
    "LARS32bit",
    "LARS8bit",
    "Lion",
    "Lion32bit",
    "Lion8bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix32bit",
    "PagedAdEMAMix8bit",
    "PagedAdam",
    "PagedAdam32bit",
    "PagedAdam8bit",
    "PagedAdamW",
    "PagedAdamW32bit",
    "PagedAdamW8bit",
    "PagedLion",
    "PagedLion32bit",
    "PagedLion8bit",
    "PytorchLARS",
    "RMSprop",
    "RMSprop32bit",
    "RMSprop8bit",
    "SGD32bit",
    "SGD8bit",
    "create",
]

_MODULES = {
    "GlobalOptimManager": "overrides",
    "KBitOptimizer": "base",
    "PytorchLARS": "lars",
    "create": "factory",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rule = name.removeprefix("Paged").removesuffix("8bit").removesuffix("32bit").removesuffix("W").lower()
    value = getattr(importlib.import_module(f".{_MODULES.get(name, rule)}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
