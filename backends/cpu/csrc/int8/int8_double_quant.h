#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// int8_vectorwise_quant by rows and by columns: codes [rows, K] twice, absmax of the rows and of the columns. Outliers
// (threshold above 0) count for neither absmax; `outliers` [K], which comes in as zeros, is 1 for their columns, whose
// codes are 0 in both. `inverse` [K] is memory to work in.
using Int8DoubleQuant = void(const void* A, DType dtype, std::int64_t rows, std::int64_t K, double threshold,
                             std::int8_t* q_row, std::int8_t* q_col, float* row_absmax, float* col_absmax,
                             std::uint8_t* outliers, float* inverse, int threads);

}  // namespace bnb_core
