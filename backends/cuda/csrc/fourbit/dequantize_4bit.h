#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/fourbit.h"

namespace bnb_core {

// out[i] = the value of code i times absmax[i / blocksize] in fp32, rounded once to dtype; n elements.
void dequantize_4bit(const std::uint8_t* packed, const float* absmax, int blocksize_log2, QuantType type,
                     std::int64_t n, DType dtype, void* out, Stream stream);

}  // namespace bnb_core
