#include "../items.cuh"
#include "cells.cuh"
#include "quantize_4bit.h"

namespace bnb_core {

namespace {

constexpr int kItems = 8, kRuns = 2;  // elements of a thread side by side, and such runs of its block
constexpr int kBlocksOfThreads = 4;   // that a multiprocessor holds

// A block is kRuns * kItems elements of each of 1 to kThreads threads.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfThreads)
    quantize(const T* A, std::int64_t n, int threads_log2, const __grid_constant__ Cells cells, bool wide,
             std::uint8_t* packed, std::int64_t size, float* absmax) {
    __shared__ Nearest nearest;
    __shared__ std::uint32_t found[kThreads / kWarp];
    nearest.make(cells);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        for (std::int64_t i = (n + 1) / 2; i < size; ++i) packed[i] = 0;
    }
    constexpr int kTile = kThreads * kRuns * kItems;
    const int threads = 1 << threads_log2, mine = threadIdx.x & (threads - 1), group = threadIdx.x >> threads_log2;
    // All threads take part to the end, those of no block too.
    for (std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * kTile; tile < n;
         tile += static_cast<std::int64_t>(gridDim.x) * kTile) {
        const std::int64_t first = tile + (static_cast<std::int64_t>(group) << threads_log2) * (kRuns * kItems);
        const std::int64_t begin = first + mine * kItems, step = static_cast<std::int64_t>(threads) * kItems;
        float x[kRuns][kItems];
        std::uint32_t largest = 0;
        const bool whole = wide && tile + kTile <= n;
        if (whole) {
            Items<T, kItems> items[kRuns];
            for (int r = 0; r < kRuns; ++r) {
                items[r] = *reinterpret_cast<const Items<T, kItems>*>(A + begin + r * step);
            }
            for (int r = 0; r < kRuns; ++r) {
                for (int i = 0; i < kItems; ++i) x[r][i] = to_float(items[r].of[i]);
            }
        } else {
            for (int r = 0; r < kRuns; ++r) read<kItems>(A, begin + r * step, n, false, x[r]);
        }
        for (int r = 0; r < kRuns; ++r) {
            for (int i = 0; i < kItems; ++i) largest = larger(largest, magnitude(x[r][i]));
        }
        for (int distance = 1; distance < threads && distance < kWarp; distance *= 2) {
            largest = larger(largest, __shfl_xor_sync(kAllLanes, largest, distance));
        }
        if (threads > kWarp) {
            __syncthreads();  // what was found for the tile before is read
            if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = largest;
            __syncthreads();
            const int warp = (threadIdx.x & ~(threads - 1)) / kWarp;
            for (int i = 0; i < threads / kWarp; ++i) largest = larger(largest, found[warp + i]);
        }
        const float scale = absmax_of(largest);
        if (mine == 0 && first < n) absmax[first >> (threads_log2 + 4)] = scale;
        const bool by_inverse = scale >= 0x1p-126f && scale <= 0x1p126f;
        if (!by_inverse) {
            for (int r = 0; r < kRuns; ++r) {
                for (int i = 0; i < kItems; ++i) x[r][i] = scale > 0.0f ? __fdiv_rn(x[r][i], scale) : 0.0f;
            }
        }
        const float factor = by_inverse ? __fdiv_rn(1.0f, scale) : 1.0f;
        for (int r = 0; r < kRuns; ++r) {
            std::uint32_t word = 0;
            for (int i = 0; i < kItems; ++i) {
                word |= nearest.code(__fmul_rn(x[r][i], factor)) << (i / 2 * 8 + (i % 2 == 0 ? 4 : 0));
            }
            const std::int64_t at = begin + r * step;
            if (whole) {
                *reinterpret_cast<std::uint32_t*>(packed + at / 2) = word;
            } else {
                for (int i = 0; i < kItems && at + i < n; i += 2) {
                    packed[(at + i) / 2] = static_cast<std::uint8_t>(word >> (4 * i));
                }
            }
        }
    }
}

}  // namespace

void quantize_4bit(const void* A, DType dtype, std::int64_t n, std::int64_t blocksize, QuantType type,
                   std::uint8_t* packed, std::int64_t size, float* absmax, Stream stream) {
    int threads_log2 = 0;
    while ((kRuns * kItems << threads_log2) < blocksize) ++threads_log2;
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        constexpr std::int64_t kTile = kThreads * kRuns * kItems;
        launch("quantize_4bit", quantize<T>, resident((n + kTile - 1) / kTile, kBlocksOfThreads), kThreads, stream,
               static_cast<const T*>(A), n, threads_log2, cells_of(four_bit(type)), aligned(A, packed), packed, size,
               absmax);
    });
}

}  // namespace bnb_core
