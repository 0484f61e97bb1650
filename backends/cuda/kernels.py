"""The kernels of the native module."""

from __future__ import annotations

from . import _native
from .blockwise import Blockwise
from .int8 import Int8

blockwise = Blockwise(_native)
int8 = Int8(_native)
