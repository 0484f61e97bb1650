#pragma once

#include <cstdint>

#include "../stream.h"

namespace bnb_core {

// out[i], i < count: the quantile of n ascending values at offset + i * spacing, between two of them interpolated.
void quantiles(const float* values, std::int64_t n, double offset, double spacing, std::int64_t count, float* out,
               Stream stream);

}  // namespace bnb_core
