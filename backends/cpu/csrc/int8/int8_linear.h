#pragma once

#include <cstdint>

#include "native/dtype.h"
#include "scratch.h"

namespace bnb_core {

// A linear layer: rows A [rows, K], in dtype, as int8_vectorwise_quant makes codes of them, times the transpose of
// CB [N, K], scaled as int8_mm_dequant does, plus bias [N], which may be null. With a threshold above 0 the outlier
// columns are multiplied in fp32 with `CB * SCB / 127`. The sum is rounded once, to out [rows, N] in dtype.
using Int8Linear = void(const void* A, DType dtype, std::int64_t rows, std::int64_t N, std::int64_t K,
                        const std::int8_t* CB, const float* SCB, const void* bias, DType bias_dtype, double threshold,
                        void* out, Scratch scratch, int threads);

}  // namespace bnb_core
