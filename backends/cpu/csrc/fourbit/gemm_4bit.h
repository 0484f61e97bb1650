#pragma once

#include <cstdint>

#include "native/fourbit.h"

namespace bnb_core {

// out = A weight^T + bias for A [M, K] and out [M, N], both of `dtype`, and bias [N] of its own dtype or null. A weight
// is the fp32 product of its value and its scale; sums are fp32, of fused multiply-adds in the order of k within runs
// of a length that the level fixes, and rounded once. A row's result depends neither on M nor on the number of threads.
// Throws std::bad_alloc.
using Gemm4bit = void(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, const void* bias,
                      DType bias_dtype, void* out, int threads);

}  // namespace bnb_core
