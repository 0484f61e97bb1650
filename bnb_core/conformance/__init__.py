"""Whether the kernels of a device do what the registry says: for each operator, every case that it declares.

`conform` tries all kernels of a device, `try_case` one case of one kernel. The cases, the checks and the tolerances are
those of `ops_registry`; the reference says what is right.
"""

from __future__ import annotations

from .report import as_json, as_markdown
from .trial import LEVELS, Failure, KernelTrial, conform, operators_of, try_case

__all__ = [
    "LEVELS",
    "Failure",
    "KernelTrial",
    "as_json",
    "as_markdown",
    "conform",
    "operators_of",
    "try_case",
]
