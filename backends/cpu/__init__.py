"""Kernels for CPUs in C++."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from bnb_core.ops_registry import BackendUnavailable, Kernel

API_VERSION = 1


def is_available() -> bool:
    """True where the native module was built; raises BackendUnavailable where it was not."""
    if find_spec("._native", __package__) is None:
        raise BackendUnavailable(
            "its native module was not built for this Python; install bnb_core again with a C++17 compiler at hand "
            "and without BNB_CORE_NO_NATIVE"
        )
    return True


KERNELS = (
    Kernel(
        op="dequantize_blockwise",
        device="cpu",
        name="cpu/scalar",
        fn=".blockwise:dequantize_blockwise",
        limits={"dtype": {torch.float32, torch.float16, torch.bfloat16}},
    ),
)
