#pragma once

#include <cstdint>

namespace bnb_core {

// out [rows, K] = A * stats / 127 in fp32, stats [rows].
using Int8VectorwiseDequant = void(const std::int8_t* A, const float* stats, std::int64_t rows, std::int64_t K,
                                   float* out, int threads);

}  // namespace bnb_core
