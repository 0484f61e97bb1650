#include "../items.cuh"
#include "codebook.cuh"
#include "quantize_blockwise.h"

namespace bnb_core {

namespace {

constexpr int kItems = 8;  // elements of a thread side by side

__device__ __forceinline__ float divisor_of(float absmax) { return absmax > 0.0f ? absmax : 1.0f; }

// A block is REPEAT * kItems elements of each of LANES lanes.
template <class T, int LANES, int REPEAT>
__global__ void __launch_bounds__(kThreads)
    quantize_by_lanes(const T* A, const float* code, int code_size, std::int64_t n, std::uint8_t* q, float* absmax) {
    __shared__ Encoder encoder;
    encoder.make(code, code_size);
    constexpr int kBlock = LANES * REPEAT * kItems, kGroups = kThreads / LANES;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const std::int64_t blocks = (n + kBlock - 1) / kBlock, step = static_cast<std::int64_t>(gridDim.x) * kGroups;
    // All lanes of a warp take part to the end, those of no block too.
    for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kGroups; first < blocks; first += step) {
        const std::int64_t block = first + group, begin = block * kBlock + lane * kItems;
        float x[REPEAT][kItems];
        std::uint32_t largest = 0;
        for (int r = 0; r < REPEAT; ++r) {
            read<kItems>(A, begin + r * LANES * kItems, n, true, x[r]);
            for (int i = 0; i < kItems; ++i) largest = larger(largest, magnitude(x[r][i]));
        }
        const float scale = absmax_of(largest_of<LANES>(largest)), divisor = divisor_of(scale);
        if (lane == 0 && block < blocks) absmax[block] = scale;
        for (int r = 0; r < REPEAT; ++r) {
            std::uint8_t codes[kItems];
            for (int i = 0; i < kItems; ++i) {
                codes[i] = encoder.nearest(scale > 0.0f ? __fdiv_rn(x[r][i], divisor) : 0.0f);
            }
            write<kItems>(q, begin + r * LANES * kItems, n, true, codes);
        }
    }
}

// A block of any size is read by kThreads threads, twice.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_by_blocks(const T* A, const float* code, int code_size, std::int64_t blocksize, std::int64_t n, bool wide,
                       std::uint8_t* q, float* absmax) {
    __shared__ Encoder encoder;
    encoder.make(code, code_size);
    const std::int64_t blocks = (n + blocksize - 1) / blocksize;
    for (std::int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const std::int64_t begin = block * blocksize, end = begin + blocksize < n ? begin + blocksize : n;
        std::uint32_t largest = 0;
        for (std::int64_t at = begin + threadIdx.x * kItems; at < end; at += kThreads * kItems) {
            float x[kItems];
            read<kItems>(A, at, end, wide, x);
            for (int i = 0; i < kItems; ++i) largest = larger(largest, magnitude(x[i]));
        }
        const float scale = absmax_of(largest_of_block(largest)), divisor = divisor_of(scale);
        if (threadIdx.x == 0) absmax[block] = scale;
        for (std::int64_t at = begin + threadIdx.x * kItems; at < end; at += kThreads * kItems) {
            float x[kItems];
            std::uint8_t codes[kItems];
            read<kItems>(A, at, end, wide, x);
            for (int i = 0; i < kItems; ++i) {
                codes[i] = encoder.nearest(scale > 0.0f ? __fdiv_rn(x[i], divisor) : 0.0f);
            }
            write<kItems>(q, at, end, wide, codes);
        }
    }
}

}  // namespace

void quantize_blockwise(const void* A, DType dtype, const float* code, std::int64_t code_size, std::int64_t blocksize,
                        std::int64_t n, std::uint8_t* q, float* absmax, Stream stream) {
    const std::int64_t blocks = (n + blocksize - 1) / blocksize;
    const int size = static_cast<int>(code_size);
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const T* x = static_cast<const T*>(A);
        const auto by_lanes = [&](auto kernel, int groups) {
            launch("quantize_blockwise", kernel, resident((blocks + groups - 1) / groups), kThreads, stream, x, code,
                   size, n, q, absmax);
        };
        const bool wide = aligned(A, q);
        if (wide && blocksize == 64) return by_lanes(quantize_by_lanes<T, 8, 1>, kThreads / 8);
        if (wide && blocksize == 128) return by_lanes(quantize_by_lanes<T, 16, 1>, kThreads / 16);
        if (wide && blocksize == 256) return by_lanes(quantize_by_lanes<T, 32, 1>, kThreads / 32);
        if (wide && blocksize == 512) return by_lanes(quantize_by_lanes<T, 32, 2>, kThreads / 32);
        if (wide && blocksize == 1024) return by_lanes(quantize_by_lanes<T, 32, 4>, kThreads / 32);
        launch("quantize_blockwise", quantize_by_blocks<T>, resident(blocks), kThreads, stream, x, code, size,
               blocksize, n, wide && blocksize % kItems == 0, q, absmax);
    });
}

}  // namespace bnb_core
