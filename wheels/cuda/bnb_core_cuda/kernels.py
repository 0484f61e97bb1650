"""The kernels of the native module."""

from __future__ import annotations

from bnb_core.backends.cuda.families import Families

from . import _native

native = Families(_native)
