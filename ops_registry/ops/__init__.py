"""The operators, by family: `blockwise`, `fourbit`, `int8`, `optimizer`, `statistics`."""

from . import blockwise, fourbit, int8, optimizer, statistics
from .fourbit import QUANT_TYPES
from .optimizer import OPTIMIZER_STATES

__all__ = ["OPTIMIZER_STATES", "QUANT_TYPES", "blockwise", "fourbit", "int8", "optimizer", "statistics"]
