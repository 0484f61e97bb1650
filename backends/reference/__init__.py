"""The reference: every operator in eager PyTorch, for any device. What it computes is what is right."""

from bnb_core.ops_registry import Kernel

API_VERSION = 1


def is_available() -> bool:
    return True


def _row(op: str, module: str) -> Kernel:
    return Kernel(op=op, device="any", name="reference", fn=f".{module}:{op}")


KERNELS = (
    _row("quantize_blockwise", "blockwise"),
    _row("dequantize_blockwise", "blockwise"),
    _row("quantize_4bit", "fourbit"),
    _row("dequantize_4bit", "fourbit"),
    _row("gemm_4bit", "fourbit"),
    _row("grouped_gemm_4bit", "fourbit"),
    _row("embedding_4bit", "fourbit"),
    _row("int8_vectorwise_quant", "int8"),
    _row("int8_vectorwise_quant_mask", "int8"),
    _row("int8_vectorwise_dequant", "int8"),
    _row("int8_double_quant", "int8"),
    _row("int8_mm", "int8"),
    _row("int8_mm_dequant", "int8"),
    _row("int8_scaled_mm", "int8"),
    _row("int8_mixed_scaled_mm", "int8"),
    _row("int8_linear", "int8"),
    _row("optimizer_update_32bit", "optimizer"),
    _row("optimizer_update_8bit", "optimizer"),
    _row("optimizer_update_8bit_blockwise", "optimizer"),
    _row("optimizer_step_32bit", "optimizer"),
    _row("optimizer_step_8bit", "optimizer"),
    _row("optimizer_step_8bit_blockwise", "optimizer"),
    _row("percentile_clipping", "statistics"),
    _row("estimate_quantiles", "statistics"),
)
