#include "../items.cuh"
#include "dequantize_4bit.h"
#include "values.cuh"

namespace bnb_core {

namespace {

constexpr int kRuns = 4;             // of a thread, under way at a time
constexpr int kBlocksOfThreads = 5;  // that a multiprocessor holds

// Elements of a thread side by side: what one access writes.
template <class T>
constexpr int kItems = 16 / sizeof(T);

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfThreads)
    dequantize(const std::uint8_t* packed, const float* absmax, int blocksize_log2,
               const __grid_constant__ FourBit type, std::int64_t n, bool wide, T* out) {
    __shared__ Values table;
    table.make(type.values);
    constexpr int kWidth = kItems<T>;
    constexpr std::int64_t kTile = kThreads * kWidth;
    const auto decode = [&](std::int64_t begin, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;  // all of them are there, and aligned
        std::uint32_t codes[kRuns];
        float scales[kRuns];
        for (int r = 0; r < kRuns; ++r) {
            const std::int64_t at = begin + r * kTile;
            codes[r] = kWhole ? codes_at<kWidth>(packed, at) : codes_before<kWidth>(packed, at, n);
            scales[r] = kWhole || at < n ? absmax[at >> blocksize_log2] : 0.0f;
        }
        for (int r = 0; r < kRuns; ++r) {
            Items<T, kWidth> values;
            for (int i = 0; i < kWidth; ++i) values.of[i] = convert<T>(__fmul_rn(table.at(codes[r], i), scales[r]));
            if constexpr (kWhole) {
                *reinterpret_cast<Items<T, kWidth>*>(out + begin + r * kTile) = values;
            } else {
                write<kWidth>(out, begin + r * kTile, n, false, values);
            }
        }
    };
    for (std::int64_t tile = blockIdx.x * kTile * kRuns; tile < n; tile += gridDim.x * kTile * kRuns) {
        const std::int64_t begin = tile + threadIdx.x * kWidth;
        if (wide && tile + kTile * kRuns <= n) {
            decode(begin, std::true_type{});
        } else {
            decode(begin, std::false_type{});
        }
    }
}

}  // namespace

void dequantize_4bit(const std::uint8_t* packed, const float* absmax, int blocksize_log2, QuantType type,
                     std::int64_t n, DType dtype, void* out, Stream stream) {
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        constexpr std::int64_t kTile = kThreads * kItems<T> * kRuns;
        launch("dequantize_4bit", dequantize<T>, resident((n + kTile - 1) / kTile, kBlocksOfThreads), kThreads, stream,
               packed, absmax, blocksize_log2, four_bit(type), n, aligned(packed, out), static_cast<T*>(out));
    });
}

}  // namespace bnb_core
