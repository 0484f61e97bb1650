#include "percentile_clipping.h"

#include <cmath>

#include "../runtime/parallel.h"
#include "../simd/simd.h"

namespace bnb_core::BNB_LEVEL {

PercentileClipping percentile_clipping;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread
constexpr std::int64_t kRun = 4096;               // elements summed in fp32
constexpr int kParts = 256;                       // whose sums are added in order, so that threads make no difference

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
    double sum = 0;
    for (std::int64_t begin = 0; begin < n; begin += kRun) {
        const std::int64_t end = n - begin > kRun ? begin + kRun : n;
        F32 sums[2] = {f32(0), f32(0)};
        std::int64_t i = begin;
        for (; i + 2 * F32::size <= end; i += 2 * F32::size) {
            const F32 first = load(x + i), second = load(x + i + F32::size);
            sums[0] = sums[0] + first * first;
            sums[1] = sums[1] + second * second;
        }
        float rest = 0;
        for (; i < end; ++i) rest += to_float(x[i]) * to_float(x[i]);
        sum += static_cast<double>(reduce_add(sums[0] + sums[1]) + rest);
    }
    return sum;
}

// The value with `below` others before it in ascending order.
float ranked(const float* values, int count, int below) {
    const auto precedes = [](float a, float b) { return a < b || (b != b && a == a); };
    for (int i = 0; i < count; ++i) {
        int before = 0;
        for (int j = 0; j < count; ++j) {
            before += precedes(values[j], values[i]) || (j < i && !precedes(values[i], values[j]));
        }
        if (before == below) return values[i];
    }
    return values[0];
}

}  // namespace

Clipping percentile_clipping(const void* grad, DType dtype, std::int64_t n, float* history, int slot, int percentile,
                             int threads) {
    double sums[kParts];
    const std::int64_t part = (n + kParts - 1) / kParts;
    visit(dtype, [&](auto type) {
        const auto* x = static_cast<const typename decltype(type)::type*>(grad);
        parallel(kParts, part > 0 ? kLeastElements / part + 1 : kParts, threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin; i < end; ++i) {
                         const std::int64_t rest = n - i * part;
                         sums[i] = rest > 0 ? sum_of_squares(x + i * part, rest > part ? part : rest) : 0.0;
                     }
                 });
    });
    double sum = 0;
    for (const double s : sums) sum += s;
    history[slot] = static_cast<float>(sum);
    const float norm = std::sqrt(history[slot]);
    const float clip = std::sqrt(ranked(history, kGradientNorms, percentile));
    return {norm, clip, norm > clip ? clip / norm : 1.0f};
}

}  // namespace bnb_core::BNB_LEVEL
