"""Adam, as classes that belong to this module."""

from .optimizer import Optimizer2State, family

family(globals(), Optimizer2State, "Adam", paged=True)
