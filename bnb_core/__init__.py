"""k-bit quantization for PyTorch: 8-bit optimizers, LLM.int8() and 4-bit weights, on any device.

`bnb_core.nn` holds the layers, `bnb_core.optim` the optimizers, `bnb_core.functional` the functions beneath them, and
`bnb_core.ops_registry` the operators and their kernels. `explain`, `force` and `fallback` say and set which one runs,
`report` says what a model is made of.
"""

from __future__ import annotations

import importlib.util

from . import _entry
from ._version import __version__

if importlib.util.find_spec(f"{__name__}.ops_registry") is None:
    raise ImportError(
        f"this is the bare source tree of bnb_core ({__path__[0]}), where its parts are not in place: "
        "run `pip install -e .` here, or leave this folder to use an installed bnb_core"
    )

from . import ops_registry
from .ops_registry import FallbackError, FallbackWarning, discover, explain, fallback, force

try:
    discover(f"{__name__}.backends")
except ValueError as error:
    if not _entry.is_command_line():
        raise
    _entry.refused = str(error)
    ops_registry.settings.ignore_environment()

# They call operators.
from . import autograd, functional, nn, optim
from .autograd import MatmulLtState, matmul, matmul_4bit
from .model_report import report
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
    "report",
]
