#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/dtype.h"

namespace bnb_core {

// The outlier columns of A [M, K], of the dtype of the result, and of the int8 weight [N, K]: their numbers, and how
// many there are, which stands on the device. rounded: the product of codes, and the weight, are rounded to the dtype
// before they meet.
struct Outliers {
    const void* A;
    const std::int8_t* weight;
    const std::int64_t* columns;
    const std::int64_t* count;
    std::int64_t K;
    bool rounded;
};

// out [M, N] = sums * row_stats * (col_stats * 6.200124e-5) + bias in fp32, rounded once to dtype. `bias` is of
// bias_dtype (dtype, or fp32) or null. Outliers, or null: their product with the weight, which is scaled by col_stats /
// 127, is added.
void int8_mm_dequant(const std::int32_t* sums, const float* row_stats, const float* col_stats, const void* bias,
                     DType bias_dtype, std::int64_t M, std::int64_t N, const Outliers* outliers, DType dtype, void* out,
                     Stream stream);

// A * stats / 127 of each row of A [rows, width], in fp32.
void int8_vectorwise_dequant(const std::int8_t* A, const float* stats, std::int64_t rows, std::int64_t width,
                             float* out, Stream stream);

}  // namespace bnb_core
