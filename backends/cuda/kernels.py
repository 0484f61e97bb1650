"""The kernels of the native module."""

from __future__ import annotations

from . import _native
from .blockwise import Blockwise
from .int8 import Int8
from .optimizer import Optimizer

blockwise = Blockwise(_native)
int8 = Int8(_native)
optimizer = Optimizer(_native)
