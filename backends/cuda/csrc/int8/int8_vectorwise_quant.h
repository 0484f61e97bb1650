#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/dtype.h"

namespace bnb_core {

// Codes of A [rows, width] by row, and absmax of each row without the outliers, magnitudes of at least `threshold`:
// their code is 0, and their columns get a 1 in `outliers`. No element is one where threshold is 0.
void int8_vectorwise_quant(const void* A, DType dtype, std::int64_t rows, std::int64_t width, float threshold,
                           std::int8_t* q, float* absmax, std::uint8_t* outliers, Stream stream);

// Codes of A by column, likewise. `absmax` of each column has to be 0.
void int8_columnwise_quant(const void* A, DType dtype, std::int64_t rows, std::int64_t width, float threshold,
                           std::int8_t* q, float* absmax, Stream stream);

// Zeros in all rows of the columns that are marked.
void int8_clear_columns(const std::uint8_t* outliers, std::int64_t rows, std::int64_t width, std::int8_t* q,
                        Stream stream);

// The numbers of the columns that are marked, ascending, and how many they are.
void int8_list_columns(const std::uint8_t* outliers, std::int64_t width, std::int64_t* columns, std::int64_t* count,
                       Stream stream);

}  // namespace bnb_core
