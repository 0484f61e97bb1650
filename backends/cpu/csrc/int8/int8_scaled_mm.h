#pragma once

#include <cstdint>

#include "native/dtype.h"
#include "scratch.h"

namespace bnb_core {

// out [rows, N] = A [rows, K] times the transpose of B [N, K], `* row_stats * (col_stats * 6.200124e-5) + bias` in
// fp32, rounded to dtype; bias [N] may be null. With `count` > 0 outliers: the product of `values` [rows, count], in
// dtype, and the named columns of `B * col_stats / 127`, rounded to dtype, is added to that and the sum rounded again.
using Int8ScaledMm = void(const std::int8_t* A, const std::int8_t* B, std::int64_t rows, std::int64_t N, std::int64_t K,
                          const float* row_stats, const float* col_stats, const void* bias, DType bias_dtype,
                          const void* values, const std::int64_t* columns, std::int64_t count, DType dtype, void* out,
                          Scratch scratch, int threads);

}  // namespace bnb_core
