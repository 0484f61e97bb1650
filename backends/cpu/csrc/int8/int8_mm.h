#pragma once

#include <cstdint>

#include "scratch.h"

namespace bnb_core {

// out [rows, N] = A [rows, K] times the transpose of B [N, K], exactly; K is at most 131071.
using Int8Mm = void(const std::int8_t* A, const std::int8_t* B, std::int64_t rows, std::int64_t N, std::int64_t K,
                    std::int32_t* out, Scratch scratch, int threads);

}  // namespace bnb_core
