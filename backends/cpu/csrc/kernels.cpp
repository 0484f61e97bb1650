// Compiled once for each level.
#include "kernels.h"

namespace bnb_core::BNB_LEVEL {

DequantizeBlockwise dequantize_blockwise;
QuantizeBlockwise quantize_blockwise;
Dequantize4bit dequantize_4bit;
Quantize4bit quantize_4bit;
Embedding4bit embedding_4bit;
Gemm4bit gemm_4bit;
OptimizerStep32bit optimizer_step_32bit;

const Kernels& kernels() {
    static constexpr Kernels table = {
        dequantize_blockwise,
        quantize_blockwise,
        dequantize_4bit,
        quantize_4bit,
        embedding_4bit,
        gemm_4bit,
        optimizer_step_32bit,
    };
    return table;
}

}  // namespace bnb_core::BNB_LEVEL
