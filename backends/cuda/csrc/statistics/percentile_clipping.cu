#include "../items.cuh"
#include "../warp.cuh"
#include "percentile_clipping.h"

namespace bnb_core {

namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) squares(const T* x, std::int64_t n, bool wide, float* partials) {
    constexpr int kItems = 16 / sizeof(T), kSteps = kSquaresPart / (kThreads * kItems);
    const std::int64_t begin = blockIdx.x * kSquaresPart + threadIdx.x * kItems;
    float sums[kItems] = {};
#pragma unroll 8
    for (int step = 0; step < kSteps; ++step) {
        float values[kItems];
        read<kItems>(x, begin + step * kThreads * kItems, n, wide, values);
        for (int i = 0; i < kItems; ++i) sums[i] = sums[i] + values[i] * values[i];
    }
    for (int half = kItems / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
    }
    const float total = sum_of_block(sums[0]);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

__device__ __forceinline__ bool precedes(float a, float b) { return a < b || (b != b && a == a); }

__global__ void __launch_bounds__(kThreads) clipping(const float* partials, std::int64_t parts, float* history,
                                                     int slot, int percentile, float* norm, float* clip, float* scale) {
    __shared__ float values[kGradientNorms];
    float mine = 0.0f;
    for (std::int64_t i = threadIdx.x; i < parts; i += kThreads) mine = mine + partials[i];
    const float squared = sum_of_block(mine);
    const int i = threadIdx.x;
    if (i < kGradientNorms) values[i] = i == slot ? squared : history[i];
    __syncthreads();
    if (i >= kGradientNorms) return;
    if (i == slot) history[i] = squared;
    int before = 0;
    for (int j = 0; j < kGradientNorms; ++j) {
        before += precedes(values[j], values[i]) || (j < i && !precedes(values[i], values[j]));
    }
    if (before != percentile) return;
    const float now = __fsqrt_rn(squared), limit = __fsqrt_rn(values[i]);
    *norm = now;
    *clip = limit;
    *scale = now > limit ? __fdiv_rn(limit, now) : 1.0f;
}

}  // namespace

void percentile_clipping(const void* grad, DType dtype, std::int64_t n, float* partials, float* history, int slot,
                         int percentile, float* norm, float* clip, float* scale, Stream stream) {
    const std::int64_t parts = (n + kSquaresPart - 1) / kSquaresPart;
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch("percentile_clipping: the norm", squares<T>, parts, kThreads, stream, static_cast<const T*>(grad), n,
               aligned(grad), partials);
    });
    launch("percentile_clipping", clipping, 1, kThreads, stream, partials, parts, history, slot, percentile, norm, clip,
           scale);
}

}  // namespace bnb_core
