"""The kernels of the native module."""

from __future__ import annotations

from . import _native
from .blockwise import Blockwise

blockwise = Blockwise(_native)
