"""The kernels of the native module."""

from __future__ import annotations

from . import _native
from .families import Families

native = Families(_native)
