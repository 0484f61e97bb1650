#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// Rows A [rows, K] as int8 codes `round(A * (1 / absmax * 127))`, and absmax [rows]. With a threshold above 0 elements
// of at least that magnitude do not count for absmax, and `outliers` [K], which comes in as zeros, is 1 for their
// columns, whose codes are 0; with 0 it is not used. A row with NaN, or Inf that is no outlier, has absmax NaN and
// codes 0.
using Int8VectorwiseQuant = void(const void* A, DType dtype, std::int64_t rows, std::int64_t K, double threshold,
                                 std::int8_t* q, float* absmax, std::uint8_t* outliers, int threads);

}  // namespace bnb_core
