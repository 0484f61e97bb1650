"""Optimizers by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from .base import KBitOptimizer

__all__ = ["create"]

# Name → module and class.
NAMES = {
    "adagrad": ("adagrad", "Adagrad"),
    "adam": ("adam", "Adam"),
    "adamw": ("adam", "AdamW"),
    "ademamix": ("ademamix", "AdEMAMix"),
    "lamb": ("lamb", "LAMB"),
    "lars": ("lars", "LARS"),
    "lion": ("lion", "Lion"),
    "rmsprop": ("rmsprop", "RMSprop"),
    "sgd": ("sgd", "SGD"),
}


def create(name: str, params: Iterable[Any], *, bits: int = 32, paged: bool = False, **options: Any) -> KBitOptimizer:
    """The optimizer of a name, in any case, with 8 or 32 bits of state, in paged memory or not.

    options: those of the class. Raises ValueError for a name that is unknown.

        optimizer = create("adamw", model.parameters(), bits=8, lr=1e-3)
    """
    if name.lower() not in NAMES:
        raise ValueError(f"there is no optimizer {name!r}; known are {', '.join(NAMES)}")
    module, cls = NAMES[name.lower()]
    make = getattr(importlib.import_module(f".{module}", __package__), cls)
    return make(params, optim_bits=bits, is_paged=paged, **options)
