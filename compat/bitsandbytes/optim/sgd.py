"""SGD, as classes that belong to this module."""

from .optimizer import Optimizer1State, family

family(globals(), Optimizer1State, "SGD")
