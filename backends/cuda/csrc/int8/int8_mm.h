#pragma once

#include <cstdint>

#include "../stream.h"

namespace bnb_core {

// out [M, N] = A [M, K] times the transpose of B [N, K], exact in int32. Made for few rows, which it reads B once for.
void int8_mm(const std::int8_t* A, const std::int8_t* B, std::int64_t M, std::int64_t N, std::int64_t K,
             std::int32_t* out, Stream stream);

}  // namespace bnb_core
