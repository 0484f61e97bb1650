"""Products of operands in 8-bit floats."""

from . import _functions

__all__ = ["_functions"]
