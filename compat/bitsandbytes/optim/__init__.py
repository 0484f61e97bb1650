"""Optimizers with 8-bit or 32-bit state."""

from bnb_core.optim import PytorchLARS

from . import adagrad, adam, adamw, ademamix, lamb, lars, lion, optimizer, rmsprop, sgd
from .optimizer import GlobalOptimManager

__all__ = ["GlobalOptimManager", "PytorchLARS", "optimizer"]

for _rule in (adagrad, adam, adamw, ademamix, lamb, lars, lion, rmsprop, sgd):
    globals().update({name: getattr(_rule, name) for name in _rule.__all__})
    __all__ += _rule.__all__
