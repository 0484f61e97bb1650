"""The functions beneath the layers: quantizing and dequantizing, products with quantized matrices, optimizer updates.

Names and arguments follow the public package. Each function is a thin form of an operator of `bnb_core.ops_registry`,
which checks its inputs and raises RuntimeError with a sentence; arguments that only concern this module raise
ValueError. Buffers given as `out=` or `absmax=` are filled and returned.
"""

from bnb_core.quant_state import QuantState, pack_dict_to_tensor, unpack_tensor_to_dict

from .blockwise import (
    dequantize_blockwise,
    quantize_blockwise,
)
from .fourbit import (
    dequantize_4bit,
    dequantize_fp4,
    dequantize_nf4,
    gemv_4bit,
    quantize_4bit,
    quantize_fp4,
    quantize_nf4,
)
from .int8 import (
    batched_igemm,
    check_matmul,
    igemm,
    int8_double_quant,
    int8_linear_matmul,
    int8_mm_dequant,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
    int8_weight_quant,
)
from .older import (
    C,
    create_quantile_map,
    dequantize,
    dequantize_no_absmax,
    double_quant,
    estimate_quantiles,
    igemmlt,
    mm_dequant,
    percentile_clipping,
    quantize,
    quantize_no_absmax,
    vectorwise_dequant,
    vectorwise_mm_dequant,
    vectorwise_quant,
)
from .optimizer import (
    optimizer_update_8bit,
    optimizer_update_8bit_blockwise,
    optimizer_update_32bit,
)
from .tables import (
    create_dynamic_map,
    create_fp8_map,
    create_linear_map,
    create_normal_map,
    get_4bit_type,
)

__all__ = [
    "C",
    "QuantState",
    "batched_igemm",
    "check_matmul",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "create_quantile_map",
    "dequantize",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_nf4",
    "dequantize_no_absmax",
    "double_quant",
    "estimate_quantiles",
    "gemv_4bit",
    "get_4bit_type",
    "igemm",
    "igemmlt",
    "int8_double_quant",
    "int8_linear_matmul",
    "int8_mm_dequant",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "int8_weight_quant",
    "mm_dequant",
    "optimizer_update_32bit",
    "optimizer_update_8bit",
    "optimizer_update_8bit_blockwise",
    "pack_dict_to_tensor",
    "percentile_clipping",
    "quantize",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_nf4",
    "quantize_no_absmax",
    "unpack_tensor_to_dict",
    "vectorwise_dequant",
    "vectorwise_mm_dequant",
    "vectorwise_quant",
]
