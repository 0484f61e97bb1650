"""The operators that a native module has kernels for."""

from __future__ import annotations

from types import ModuleType

from .blockwise import Blockwise
from .fourbit import FourBit
from .int8 import Int8
from .optimizer import Optimizer
from .statistics import Statistics


class Families:
    """An attribute for each family, whose methods are the operators."""

    def __init__(self, native: ModuleType) -> None:
        self.blockwise = Blockwise(native)
        self.fourbit = FourBit(native)
        self.int8 = Int8(native)
        self.optimizer = Optimizer(native)
        self.statistics = Statistics(native)
