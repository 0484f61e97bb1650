"""The operators, by family; importing this defines them."""

from . import blockwise, fourbit, int8, optimizer, statistics

__all__ = ["blockwise", "fourbit", "int8", "optimizer", "statistics"]
