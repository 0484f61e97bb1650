#include "../items.cuh"
#include "embedding_4bit.h"
#include "values.cuh"

namespace bnb_core {

namespace {

constexpr int kRuns = 4;  // of a lane, under way at a time

// Elements of a lane side by side: what one access writes.
template <class T>
constexpr int kItems = 16 / sizeof(T);

// A warp for each part of a row. WIDE: rows are whole runs, and everything is aligned.
template <class T>
__global__ void __launch_bounds__(kThreads)
    embed(Indices indices, Weight4bit weight, const __grid_constant__ FourBit type, std::int64_t parts, bool wide,
          T* out) {
    __shared__ Values table;
    table.make(type.values);
    constexpr int kWidth = kItems<T>, kStep = kWarp * kWidth;
    const float none = __uint_as_float(kNaNBits);
    const std::int64_t K = weight.K, all = indices.count * parts;
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (kThreads / kWarp);
    std::int64_t part = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    for (; part < all; part += step) {
        const std::int64_t row = part / parts, index = indices[row];
        const std::int64_t begin = part % parts * (kRuns * kStep) + threadIdx.x % kWarp * kWidth;
        const bool exists = index >= 0 && index < weight.N;
        const std::int64_t first = exists ? index * K : 0;
        if (!wide) {
            for (std::int64_t at = begin; at < K && at < begin + kRuns * kStep; at += kStep) {
                for (int i = 0; i < kWidth && at + i < K; ++i) {
                    const std::int64_t element = first + at + i;
                    const unsigned byte = exists ? weight.packed[element / 2] : 0;
                    const float scale = exists ? weight.scales[element >> weight.blocksize_log2] : none;
                    const float value = table[element % 2 == 0 ? byte >> 4 : byte & 15];
                    out[row * K + at + i] = convert<T>(__fmul_rn(value, scale));
                }
            }
            continue;
        }
        std::uint32_t codes[kRuns];
        float scales[kRuns];
        for (int r = 0; r < kRuns; ++r) {
            const std::int64_t at = begin + r * kStep;
            const bool found = exists && at < K;
            codes[r] = found ? codes_at<kWidth>(weight.packed, first + at) : 0;
            scales[r] = found ? weight.scales[(first + at) >> weight.blocksize_log2] : none;
        }
        for (int r = 0; r < kRuns; ++r) {
            Items<T, kWidth> values;
            for (int i = 0; i < kWidth; ++i) values.of[i] = convert<T>(__fmul_rn(table.at(codes[r], i), scales[r]));
            write<kWidth>(out + row * K, begin + r * kStep, K, true, values);
        }
    }
}

}  // namespace

void embedding_4bit(Indices indices, const Weight4bit& table, DType dtype, void* out, Stream stream) {
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        constexpr std::int64_t kPart = kRuns * kWarp * kItems<T>, kWarps = kThreads / kWarp;
        const std::int64_t parts = (table.K + kPart - 1) / kPart, all = indices.count * parts;
        const bool wide = table.K % kItems<T> == 0 && aligned(table.packed, out);
        launch("embedding_4bit", embed<T>, resident((all + kWarps - 1) / kWarps), kThreads, stream, indices, table,
               four_bit(table.type), parts, wide, static_cast<T*>(out));
    });
}

}  // namespace bnb_core
