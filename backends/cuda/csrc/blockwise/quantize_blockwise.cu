#include <type_traits>

#include "../items.cuh"
#include "codebook.cuh"
#include "quantize_blockwise.h"
#include "quotient.cuh"

namespace bnb_core {

namespace {

constexpr int kItems = 8;  // elements of a thread side by side

// Those of elements begin ... of n; wide: they are aligned.
__device__ __forceinline__ void write(std::uint8_t* q, std::int64_t begin, std::int64_t n, bool wide,
                                      const Coded<kItems>& codes) {
    if (wide && begin + kItems <= n) return codes.write(q + begin);
    for (int i = 0; i < kItems; ++i) {
        if (begin + i < n) q[begin + i] = codes[i];
    }
}

// A block is REPEAT * kItems elements of each of LANES lanes.
template <class T, int LANES, int REPEAT>
__global__ void __launch_bounds__(kThreads)
    quantize_by_lanes(const T* A, const float* code, int code_size, std::int64_t n, std::uint8_t* q, float* absmax) {
    __shared__ Encoder<true> encoder;
    encoder.make(code, code_size);
    constexpr int kBlock = LANES * REPEAT * kItems, kGroups = kThreads / LANES;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const std::int64_t blocks = (n + kBlock - 1) / kBlock, step = static_cast<std::int64_t>(gridDim.x) * kGroups;
    // All lanes of a warp take part to the end, those of no block too.
    const auto quantize = [&](std::int64_t block, auto full) {
        const std::int64_t begin = block * kBlock + lane * kItems, end = decltype(full)::value ? begin + kBlock : n;
        Items<T, kItems> items[REPEAT];
        for (int r = 0; r < REPEAT; ++r) items[r] = read<kItems>(A, begin + r * LANES * kItems, end, true);
        float x[REPEAT][kItems];
        std::uint32_t largest = 0;
        for (int r = 0; r < REPEAT; ++r) {
            for (int i = 0; i < kItems; ++i) {
                x[r][i] = to_float(items[r].of[i]);
                largest = larger(largest, magnitude(x[r][i]));
            }
        }
        const float scale = absmax_of(largest_of<LANES>(largest));
        const Quotient over(scale);
        if (lane == 0 && block < blocks) absmax[block] = scale;
#pragma unroll
        for (int r = 0; r < REPEAT; ++r) {
            for (int i = 0; i < kItems; ++i) x[r][i] = over(x[r][i]);
            const auto codes = decltype(full)::value ? encoder.nearest_by_words(x[r]) : encoder.nearest(x[r]);
            write(q, begin + r * LANES * kItems, end, true, codes);
        }
    };
    // Where blocks are whole no read waits for a comparison.
    const std::int64_t whole = encoder.by_words ? n / kBlock : 0;
    for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kGroups; first < blocks; first += step) {
        if (first + kGroups <= whole) {
            quantize(first + group, std::true_type{});
        } else {
            quantize(first + group, std::false_type{});
        }
    }
}

// A block of any size is read by kThreads threads, twice.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_by_blocks(const T* A, const float* code, int code_size, std::int64_t blocksize, std::int64_t n, bool wide,
                       std::uint8_t* q, float* absmax) {
    __shared__ Encoder<true> encoder;
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
        const float scale = absmax_of(largest_of_block(largest));
        const Quotient over(scale);
        if (threadIdx.x == 0) absmax[block] = scale;
        for (std::int64_t at = begin + threadIdx.x * kItems; at < end; at += kThreads * kItems) {
            float x[kItems];
            read<kItems>(A, at, end, wide, x);
            for (int i = 0; i < kItems; ++i) x[i] = over(x[i]);
            write(q, at, end, wide, encoder.nearest(x));
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
        if (wide && blocksize == 64) return by_lanes(quantize_by_lanes<T, 4, 2>, kThreads / 4);
        if (wide && blocksize == 128) return by_lanes(quantize_by_lanes<T, 8, 2>, kThreads / 8);
        if (wide && blocksize == 256) return by_lanes(quantize_by_lanes<T, 16, 2>, kThreads / 16);
        if (wide && blocksize == 512) return by_lanes(quantize_by_lanes<T, 32, 2>, kThreads / 32);
        if (wide && blocksize == 1024) return by_lanes(quantize_by_lanes<T, 32, 4>, kThreads / 32);
        launch("quantize_blockwise", quantize_by_blocks<T>, resident(blocks), kThreads, stream, x, code, size,
               blocksize, n, wide && blocksize % kItems == 0, q, absmax);
    });
}

}  // namespace bnb_core
