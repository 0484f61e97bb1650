"""Kernels for NVIDIA GPUs, and AMD's by the same device key: the portable ones in Triton."""

import torch

from bnb_core.ops_registry import BackendUnavailable

from .. import triton

API_VERSION = 1

KERNELS = triton.rows("cuda")


def is_available() -> bool:
    """True where torch finds a GPU and Triton is installed; raises BackendUnavailable where not."""
    if not torch.cuda.is_available():
        raise BackendUnavailable("torch finds no CUDA or ROCm GPU")
    return triton.is_available()
