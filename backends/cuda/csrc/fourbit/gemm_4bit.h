#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/fourbit.h"

namespace bnb_core {

// out = A weight^T + bias for A [M, K] and out [M, N], both of `dtype`, and bias [N] of its own dtype or null; summed
// in fp32 in a fixed order and rounded once.
void gemm_4bit(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, const void* bias, DType bias_dtype,
               void* out, Stream stream);

}  // namespace bnb_core
