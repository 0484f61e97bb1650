"""Portable GPU kernels in Triton: a library, with no device of its own. The tables of devices take their rows here.

`rows("xpu")` are those of a device. With TRITON_INTERPRET=1 the CPU has them too, interpreted by Triton: for tests.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from bnb_core.ops_registry import BackendUnavailable, Kernel

API_VERSION = 1

# Family → its operators.
OPS = {
    "blockwise": ("quantize_blockwise", "dequantize_blockwise"),
    "fourbit": ("quantize_4bit", "dequantize_4bit", "gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"),
    "int8": (
        *("int8_vectorwise_quant", "int8_vectorwise_quant_mask", "int8_vectorwise_dequant", "int8_double_quant"),
        *("int8_mm", "int8_mm_dequant", "int8_scaled_mm", "int8_mixed_scaled_mm", "int8_linear"),
    ),
    "optimizer": (
        *("optimizer_update_32bit", "optimizer_update_8bit", "optimizer_update_8bit_blockwise"),
        *("optimizer_step_32bit", "optimizer_step_8bit", "optimizer_step_8bit_blockwise"),
    ),
    "statistics": ("percentile_clipping",),
}
# Those whose kernels refuse some arguments, in `why_not_<op>`.
LIMITED = {
    *("quantize_blockwise", "gemm_4bit"),
    *("int8_mm", "int8_scaled_mm", "int8_mixed_scaled_mm", "int8_linear"),
}


def is_available() -> bool:
    """True where Triton is installed; raises BackendUnavailable where it is not."""
    if find_spec("triton") is None:
        raise BackendUnavailable("triton is not installed")
    return True


def rows(device: str) -> tuple[Kernel, ...]:
    """A row for each operator, named `DEVICE/triton`."""
    return tuple(
        Kernel(
            op=op,
            device=device,
            name=f"{device}/triton",
            fn=f"{__name__}.{family}:{op}",
            why_not=f"{__name__}.{family}:why_not_{op}" if op in LIMITED else None,
        )
        for family, ops in OPS.items()
        for op in ops
    )


KERNELS = rows("cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ()
