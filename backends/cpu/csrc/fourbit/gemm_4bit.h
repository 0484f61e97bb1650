#pragma once

#include <cstdint>

#include "native/dtype.h"
#include "native/codebooks.h"
#include "scales.h"

namespace bnb_core {

// A weight [N, K] as it is stored: one run of N * K codes, two to a byte, in blocks that go over the ends of rows.
struct Weight4bit {
    const std::uint8_t* packed;
    std::int64_t N, K;
    Scales scales;
    int blocksize_log2;  // of 16 or more
    QuantType type;
};

// out = A weight^T + bias for A [M, K] and out [M, N], both of `dtype`, and bias [N] of its own dtype or null. A weight
// is the fp32 product of its value and its scale; sums are fp32, of fused multiply-adds in the order of k within runs
// of a length that the level fixes, and rounded once. A row's result depends neither on M nor on the number of threads.
// Throws std::bad_alloc.
using Gemm4bit = void(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, const void* bias,
                      DType bias_dtype, void* out, int threads);

}  // namespace bnb_core
