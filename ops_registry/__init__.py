"""What every operator of bnb_core is: schemas, checks, fakes, cases, the kernel table and how a kernel is chosen.

Start reading at `op.py` (what an operator consists of), then `ops/` (the operators) and `cases/` (their inputs for the
tests), `kernels.py` (a row of the kernel table), `dispatch.py` and `choosing.py` (how a call finds its kernel).
"""

if __name__ != "bnb_core.ops_registry":
    raise ImportError(
        f"the package {__name__!r} is part of bnb_core and has one name only: write `import bnb_core.ops_registry`"
    )

from . import ops
from .cases import BadCase, Case
from .choosing import FallbackError, FallbackWarning, available_devices, devices, kernel_counts, reset_kernel_counts
from .discovery import API_VERSION, BackendRecord, BackendUnavailable, backends, discover
from .dispatch import define_all, register_kernels, unregister_kernel
from .explain import chosen_kernel, explain
from .formats import OPTIMIZER_STATES, QUANT_TYPES
from .kernels import Kernel, kernel_named, kernels_for
from .op import OPS, Op
from .paging import PagedMemory, paged_memory
from .settings import fallback, force
from .tolerance import EXACT, Comparison, Tolerance, compare, differences

define_all()

__all__ = [
    "API_VERSION",
    "BackendRecord",
    "BackendUnavailable",
    "BadCase",
    "Case",
    "Comparison",
    "EXACT",
    "FallbackError",
    "FallbackWarning",
    "Kernel",
    "OPS",
    "OPTIMIZER_STATES",
    "Op",
    "PagedMemory",
    "QUANT_TYPES",
    "Tolerance",
    "available_devices",
    "backends",
    "chosen_kernel",
    "compare",
    "devices",
    "differences",
    "discover",
    "explain",
    "fallback",
    "force",
    "kernel_counts",
    "kernel_named",
    "kernels_for",
    "ops",
    "paged_memory",
    "register_kernels",
    "reset_kernel_counts",
    "unregister_kernel",
]
