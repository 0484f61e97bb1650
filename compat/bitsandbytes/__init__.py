"""The names of `bitsandbytes` over bnb_core.

`features` and `supported_torch_devices` are what integrations ask before they use a device.
"""

from __future__ import annotations

from bnb_core.ops_registry import available_devices

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


# The types of this machine's devices: quantized layers run on each, on the reference where there are no kernels.
# Made anew at each reading, since a vendor's package may be imported later.
supported_torch_devices: set[str]


def __getattr__(name: str) -> set[str]:
    if name == "supported_torch_devices":
        return set(available_devices())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
