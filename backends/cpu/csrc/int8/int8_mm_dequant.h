#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// out [rows, N] = A * row_stats * (col_stats * 6.200124e-5) + bias in fp32, rounded to dtype; bias [N] may be null.
using Int8MmDequant = void(const std::int32_t* A, const float* row_stats, const float* col_stats, const void* bias,
                           DType bias_dtype, std::int64_t rows, std::int64_t N, DType dtype, void* out, int threads);

}  // namespace bnb_core
