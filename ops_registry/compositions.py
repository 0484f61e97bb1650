"""What an operator can be composed of: a device that has kernels for the parts has the whole, with no row for it.

What gives the values of codes or sums is arithmetic of torch; it comes with the kernel that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COMPOSED", "COMPOSITIONS", "Composition"]

# The name of such a kernel.
COMPOSED = "composed"

_CODED = ("quantize_blockwise", "dequantize_blockwise")


@dataclass(frozen=True)
class Composition:
    """needs: the operators that a device must have kernels for. limited: the function has a refusal, `why_not_<op>`."""

    needs: tuple[str, ...]
    limited: bool = False


# Their functions are in backends/reference/composed.py, by the name of the operator.
COMPOSITIONS = {
    "gemm_4bit": Composition(("dequantize_4bit",)),
    "grouped_gemm_4bit": Composition(("dequantize_4bit",)),
    "embedding_4bit": Composition(("dequantize_4bit",), limited=True),
    "int8_vectorwise_dequant": Composition(("int8_vectorwise_quant",)),
    "int8_mm_dequant": Composition(("int8_mm",)),
    "int8_scaled_mm": Composition(("int8_mm",)),
    "int8_mixed_scaled_mm": Composition(("int8_mm",)),
    "int8_linear": Composition(("int8_mm", "int8_vectorwise_quant")),
    "optimizer_update_8bit_blockwise": Composition(_CODED),
    "optimizer_step_8bit_blockwise": Composition(_CODED),
}
