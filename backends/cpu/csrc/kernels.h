// The kernels of one level, as the bindings call them: one function pointer an entry.
#pragma once

#include "blockwise/dequantize_blockwise.h"

namespace bnb_core {

struct Kernels {
    DequantizeBlockwise* dequantize_blockwise;
};

}  // namespace bnb_core
