#include "../warp.cuh"
#include "quantiles.h"

namespace bnb_core {

namespace {

__global__ void __launch_bounds__(kThreads)
    interpolate(const float* values, std::int64_t n, double offset, double spacing, std::int64_t count, float* out) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= count) return;
    const double index = (offset + static_cast<double>(i) * spacing) * static_cast<double>(n - 1);
    const std::int64_t low = static_cast<std::int64_t>(index), high = low + 1 < n ? low + 1 : n - 1;
    const float part = static_cast<float>(index - static_cast<double>(low));
    const float a = values[low], step = values[high] - a;
    out[i] = part < 0.5f ? a + part * step : values[high] - step * (1.0f - part);
}

}  // namespace

void quantiles(const float* values, std::int64_t n, double offset, double spacing, std::int64_t count, float* out,
               Stream stream) {
    launch("estimate_quantiles", interpolate, (count + kThreads - 1) / kThreads, kThreads, stream, values, n, offset,
           spacing, count, out);
}

}  // namespace bnb_core
