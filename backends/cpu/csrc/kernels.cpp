// Compiled once for each level.
#include "kernels.h"

namespace bnb_core::BNB_LEVEL {

#define X(Function, name) Function name;
BNB_KERNELS(X)
#undef X

const Kernels& kernels() {
#define X(Function, name) name,
    static constexpr Kernels table = {BNB_KERNELS(X)};
#undef X
DequantizeBlockwise dequantize_blockwise;
QuantizeBlockwise quantize_blockwise;
Dequantize4bit dequantize_4bit;
Quantize4bit quantize_4bit;
Embedding4bit embedding_4bit;
Gemm4bit gemm_4bit;
Int8DoubleQuant int8_double_quant;
Int8Linear int8_linear;
Int8Mm int8_mm;
Int8MmDequant int8_mm_dequant;
Int8ScaledMm int8_scaled_mm;
Int8VectorwiseDequant int8_vectorwise_dequant;
Int8VectorwiseQuant int8_vectorwise_quant;
OptimizerStep32bit optimizer_step_32bit;
OptimizerStep8bitBlockwise optimizer_step_8bit_blockwise;
OptimizerStep8bit optimizer_step_8bit;

const Kernels& kernels() {
    static constexpr Kernels table = {
        dequantize_blockwise,
        quantize_blockwise,
        dequantize_4bit,
        quantize_4bit,
        embedding_4bit,
        gemm_4bit,
        int8_double_quant,
        int8_linear,
        int8_mm,
        int8_mm_dequant,
        int8_scaled_mm,
        int8_vectorwise_dequant,
        int8_vectorwise_quant,
        optimizer_step_32bit,
        optimizer_step_8bit_blockwise,
        optimizer_step_8bit,
    };
    return table;
}

}  // namespace bnb_core::BNB_LEVEL
