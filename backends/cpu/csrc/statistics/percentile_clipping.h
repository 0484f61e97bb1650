#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

constexpr int kGradientNorms = 100;  // in the history

struct Clipping {
    float norm, clip, scale;
};

// Writes the squared norm of n elements to history[slot] and gives the norm; the root of the entry of the history that
// has `percentile` entries below it, NaN above all; and the factor that shortens the norm to that, or 1.
using PercentileClipping = Clipping(const void* grad, DType dtype, std::int64_t n, float* history, int slot,
                                    int percentile, int threads);

}  // namespace bnb_core
