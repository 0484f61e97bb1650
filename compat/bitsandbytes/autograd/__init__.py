"""Differentiable products with quantized weights."""

from . import _functions

__all__ = ["_functions"]
