// Compiled once for each level.
#include "kernels.h"

namespace bnb_core::BNB_LEVEL {

DequantizeBlockwise dequantize_blockwise;

const Kernels& kernels() {
    static constexpr Kernels table = {
        dequantize_blockwise,
    };
    return table;
}

}  // namespace bnb_core::BNB_LEVEL
