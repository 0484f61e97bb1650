#include "../items.cuh"
#include "codebook.cuh"
#include "dequantize_blockwise.h"

namespace bnb_core {

namespace {

constexpr int kItems = 8, kRuns = 4;  // elements of a thread side by side, and such runs under way at a time

template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize(const std::uint8_t* A, const float* absmax, const float* code, int code_size, std::int64_t blocksize,
               int blocksize_log2, std::int64_t n, bool wide, T* out) {
    __shared__ Decoder decoder;
    decoder.make(code, code_size);
    constexpr std::int64_t kTile = kThreads * kItems;
    for (std::int64_t tile = blockIdx.x * kTile * kRuns; tile < n; tile += gridDim.x * kTile * kRuns) {
        const std::int64_t begin = tile + threadIdx.x * kItems;
        if (wide && tile + kRuns * kTile <= n) {
            Items<std::uint8_t, kItems> codes[kRuns];
            float scales[kRuns];
            for (int r = 0; r < kRuns; ++r) {
                const std::int64_t at = begin + r * kTile;
                codes[r] = *reinterpret_cast<const Items<std::uint8_t, kItems>*>(A + at);
                scales[r] = absmax[at >> blocksize_log2];
            }
            for (int r = 0; r < kRuns; ++r) {
                Items<T, kItems> values;
                for (int i = 0; i < kItems; ++i) {
                    values.of[i] = convert<T>(__fmul_rn(decoder.values[codes[r].of[i]], scales[r]));
                }
                *reinterpret_cast<Items<T, kItems>*>(out + begin + r * kTile) = values;
            }
        } else {
            for (int i = 0; i < kRuns * kItems; ++i) {
                const std::int64_t at = tile + threadIdx.x + static_cast<std::int64_t>(i) * kThreads;
                if (at < n) out[at] = convert<T>(__fmul_rn(decoder.values[A[at]], absmax[at / blocksize]));
            }
        }
    }
}

}  // namespace

void dequantize_blockwise(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                          std::int64_t blocksize, std::int64_t n, DType dtype, void* out, Stream stream) {
    // Where blocks are whole runs of a thread, it needs one scale for each.
    int log2 = 0;
    while (blocksize >> log2 > 1) ++log2;
    const bool wide = blocksize == std::int64_t{1} << log2 && blocksize % kItems == 0 && aligned(A, out);
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        constexpr std::int64_t kTile = kThreads * kItems * kRuns;
        launch("dequantize_blockwise", dequantize<T>, resident((n + kTile - 1) / kTile), kThreads, stream, A, absmax,
               code, static_cast<int>(code_size), blocksize, log2, n, wide, static_cast<T*>(out));
    });
}

}  // namespace bnb_core
