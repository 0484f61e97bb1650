"""Kernels for CPUs in C++, one row for each level of instructions; the best that this CPU runs comes first."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

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


# Family → its operators.
OPS = {
    "blockwise": ("quantize_blockwise", "dequantize_blockwise"),
    "fourbit": ("quantize_4bit", "dequantize_4bit", "gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"),
    "int8": (
        "int8_vectorwise_quant",
        "int8_vectorwise_quant_mask",
        "int8_vectorwise_dequant",
        "int8_double_quant",
        "int8_mm",
        "int8_mm_dequant",
        "int8_scaled_mm",
        "int8_mixed_scaled_mm",
        "int8_linear",
    ),
    "optimizer": (
        *("optimizer_update_32bit", "optimizer_update_8bit_blockwise", "optimizer_update_8bit"),
        *("optimizer_step_32bit", "optimizer_step_8bit_blockwise", "optimizer_step_8bit"),
    ),
    "statistics": ("percentile_clipping", "estimate_quantiles"),
}


def _rows() -> tuple[Kernel, ...]:
    if find_spec("._native", __package__) is None:
        return ()
    from ._native import LEVELS

    return tuple(
        Kernel(
            op=op,
            device="cpu",
            name=f"cpu/{level}",
            fn=f".{family}:kernels.{level}.{op}",
            unavailable=f"this CPU has no {missing}" if missing else None,
        )
        for family, ops in OPS.items()
        for op in ops
        for level, missing in LEVELS.items()
    )


KERNELS = _rows()


def shortcut(op: str, call: Callable[..., Any], settled: Callable[..., Any]) -> Callable[..., Any]:
    """What torch calls for an operator: see `repeated`."""
    from .repeated import without_python

    return without_python(op, call, settled)
