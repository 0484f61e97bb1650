#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// Per block of A, n elements of dtype: absmax, NaN where an element is NaN or Inf, and in q the codes nearest to
// A / absmax, those of 0 where absmax is 0 or NaN. code holds 1 to 256 values.
using QuantizeBlockwise = void(const void* A, DType dtype, const float* code, std::int64_t code_size,
                               std::int64_t blocksize, std::int64_t n, std::uint8_t* q, float* absmax, int threads);

}  // namespace bnb_core
