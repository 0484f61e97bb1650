#pragma once

#include <cstdint>

#include "native/codebooks.h"
#include "native/dtype.h"

namespace bnb_core {

// out[i] = value of code i * absmax[i / blocksize], an fp32 product rounded once to dtype. `packed` holds n codes, two
// to a byte, absmax one scale for each block; blocksize is a multiple of 16.
using Dequantize4bit = void(const std::uint8_t* packed, const float* absmax, std::int64_t blocksize, QuantType type,
                            std::int64_t n, DType dtype, void* out, int threads);

}  // namespace bnb_core
