#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/dtype.h"

namespace bnb_core {

constexpr int kGradientNorms = 100;           // in the history
constexpr std::int64_t kSquaresPart = 16384;  // elements that a block sums up

// Writes the squared norm of n elements to history[slot]; to `norm` the norm; to `clip` the root of the entry of the
// history that has `percentile` entries below it, NaN above all; and to `scale` the factor that shortens the norm to
// that, or 1. partials: scratch for one number for each kSquaresPart begun.
void percentile_clipping(const void* grad, DType dtype, std::int64_t n, float* partials, float* history, int slot,
                         int percentile, float* norm, float* clip, float* scale, Stream stream);

}  // namespace bnb_core
