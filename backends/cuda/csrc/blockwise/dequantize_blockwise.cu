#include "../items.cuh"
#include "codebook.cuh"
#include "dequantize_blockwise.h"

namespace bnb_core {

namespace {

constexpr int kItems = 8, kRuns = 4;  // elements of a thread side by side, and how many such are under way at a time

template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize(const std::uint8_t* A, const float* absmax, const float* code, int code_size, std::int64_t blocksize,
               std::int64_t n, bool wide, T* out) {
    __shared__ Decoder decoder;
    decoder.make(code, code_size);
    // Where blocks are whole runs of a thread, it needs one scale for each.
    const bool whole = blocksize % kItems == 0;
    constexpr std::int64_t kTile = kThreads * kItems;
    for (std::int64_t tile = blockIdx.x * kTile * kRuns; tile < n; tile += gridDim.x * kTile * kRuns) {
        const std::int64_t begin = tile + threadIdx.x * kItems;
        Items<std::uint8_t, kItems> codes[kRuns];
        float scales[kRuns];
        for (int r = 0; r < kRuns; ++r) {
            const std::int64_t at = begin + r * kTile;
            codes[r] = read<kItems>(A, at, n, wide);
            scales[r] = whole && at < n ? absmax[at / blocksize] : 0.0f;
        }
        for (int r = 0; r < kRuns; ++r) {
            const std::int64_t at = begin + r * kTile;
            T values[kItems];
            for (int i = 0; i < kItems; ++i) {
                const float scale = whole || at + i >= n ? scales[r] : absmax[(at + i) / blocksize];
                values[i] = convert<T>(__fmul_rn(decoder.values[codes[r].of[i]], scale));
            }
            write<kItems>(out, at, n, wide, values);
        }
    }
}

}  // namespace

void dequantize_blockwise(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                          std::int64_t blocksize, std::int64_t n, DType dtype, void* out, Stream stream) {
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        constexpr std::int64_t kTile = kThreads * kItems * kRuns;
        launch("dequantize_blockwise", dequantize<T>, resident((n + kTile - 1) / kTile), kThreads, stream, A, absmax,
               code, static_cast<int>(code_size), blocksize, n, aligned(A, out), static_cast<T*>(out));
    });
}

}  // namespace bnb_core
