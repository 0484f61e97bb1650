"""k-bit quantization for PyTorch: 8-bit optimizers, LLM.int8() and 4-bit weights, on any device.

`bnb_core.nn` holds the layers, `bnb_core.optim` the optimizers, `bnb_core.functional` the functions beneath them, and
`bnb_core.ops_registry` the operators and their kernels. `explain`, `force` and `fallback` say and set which kernel runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ._version import __version__

if importlib.util.find_spec(f"{__name__}.ops_registry") is None:
    raise ImportError(
        f"this is the bare source tree of bnb_core ({__path__[0]}), where its parts are not in place: "
        "run `pip install -e .` here, or leave this folder to use an installed bnb_core"
    )

from . import ops_registry
from .ops_registry import FallbackError, FallbackWarning, discover, explain, fallback, force

if TYPE_CHECKING:
    from . import autograd, functional, nn, optim
    from .autograd import MatmulLtState, matmul, matmul_4bit
    from .quant_state import QuantState

__all__ = [
    "FallbackError",
    "FallbackWarning",
    "MatmulLtState",
    "QuantState",
    "__version__",
    "autograd",
    "explain",
    "fallback",
    "force",
    "functional",
    "matmul",
    "matmul_4bit",
    "nn",
    "ops_registry",
    "optim",
]

discover(f"{__name__}.backends")

_SUBMODULES = ("autograd", "functional", "nn", "optim")
_NAMES = {
    "MatmulLtState": "autograd",
    "QuantState": "quant_state",
    "matmul": "autograd",
    "matmul_4bit": "autograd",
}


def __getattr__(name: str) -> Any:
    """Imports the API's modules when they are first asked for."""
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
