#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// out[i] = code[A[i]] * absmax[i / blocksize], an fp32 product rounded once to dtype. A and out hold n elements, absmax
// one for each block; code holds 1 to 256, and an index past its end gives NaN.
using DequantizeBlockwise = void(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                                 std::int64_t blocksize, std::int64_t n, DType dtype, void* out, int threads);

}  // namespace bnb_core
