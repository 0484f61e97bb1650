"""LARS, as classes that belong to this module, and in torch's operations."""

from bnb_core.optim import PytorchLARS  # noqa: F401  a name of this module

from .optimizer import Optimizer1State, family

family(globals(), Optimizer1State, "LARS")
