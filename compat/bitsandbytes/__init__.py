"""The names of `bitsandbytes` over bnb_core.

`features` and `supported_torch_devices` are what integrations ask before they use a device.
"""

from __future__ import annotations

import torch

from bnb_core.ops_registry import devices

from . import (
    _ops,  # noqa: F401  defines torch.ops.bitsandbytes
    autograd,
    cextension,
    consts,
    cuda_specs,
    functional,
    nn,
    optim,
    research,
    utils,
)
from ._version import __version__
from .autograd._functions import MatmulLtState, matmul, matmul_4bit

__all__ = [
    "MatmulLtState",
    "__version__",
    "autograd",
    "cextension",
    "consts",
    "cuda_specs",
    "features",
    "functional",
    "matmul",
    "matmul_4bit",
    "nn",
    "optim",
    "research",
    "supported_torch_devices",
    "utils",
]

features = {"multi_backend"}


def _supported() -> set[str]:
    """Devices with kernels of their own, and the accelerator of this machine, which has the reference at least."""
    accelerator = torch.accelerator.current_accelerator()
    return {"cpu", *devices()} | ({accelerator.type} if accelerator else set())


supported_torch_devices = _supported()
