"""Kernels for Intel GPUs: the portable ones in Triton."""

import torch

from bnb_core.ops_registry import BackendUnavailable

from .. import triton

API_VERSION = 1

KERNELS = triton.rows("xpu")


def is_available() -> bool:
    """True where torch finds an XPU and Triton is installed; raises BackendUnavailable where not."""
    if not torch.xpu.is_available():
        raise BackendUnavailable("torch finds no XPU")
    return triton.is_available()
