#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/fourbit.h"

namespace bnb_core {

// Rows ends[e - 1] ... ends[e] of out [T, N] = those of A [T, K] times the transpose of weight e, one of ends.count of
// [N, K] in a row, plus bias [N] e, of its own dtype or null. The ends are taken as if they ascended to T at most; rows
// of no group are not written. For a dtype of 16 bits, K and block sizes that are multiples of 64, addresses of A and
// the weights that are multiples of 16, at most 1024 groups, and GPUs of compute capability 8.0 or later.
void grouped_gemm_4bit(const void* A, DType dtype, std::int64_t T, const Weight4bit& weight, Indices ends,
                       const void* bias, DType bias_dtype, void* out, Stream stream);

}  // namespace bnb_core
