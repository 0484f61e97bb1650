// Compiled once for each level.
#include "kernels.h"

namespace bnb_core::BNB_LEVEL {

DequantizeBlockwise dequantize_blockwise;
Dequantize4bit dequantize_4bit;

const Kernels& kernels() {
    static constexpr Kernels table = {
        dequantize_blockwise,
        dequantize_4bit,
    };
    return table;
}

}  // namespace bnb_core::BNB_LEVEL
