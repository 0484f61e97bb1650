"""The inputs that every operator is tested with, by family of operators."""

from .maker import BadCase, Case, Level, Maker, fresh, tensors

__all__ = ["BadCase", "Case", "Level", "Maker", "fresh", "tensors"]
