// What lanes of a warp, and threads of a block, find out together. All of them must call.
#pragma once

#include "native/dtype.h"
#include "platform.cuh"

namespace bnb_core {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kThreads = 256;  // of a block, where nothing else is said

__device__ __forceinline__ std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

// The largest of the numbers of a group of LANES neighbours.
template <int LANES = kWarp>
__device__ __forceinline__ std::uint32_t largest_of(std::uint32_t mine) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        mine = larger(mine, __shfl_xor_sync(kAllLanes, mine, distance));
    }
    return mine;
}

// Their sum, in the same order every time.
template <int LANES = kWarp>
__device__ __forceinline__ float sum_of(float mine) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        mine = __fadd_rn(mine, __shfl_xor_sync(kAllLanes, mine, distance));
    }
    return mine;
}

// Of all threads of a block of kThreads. The block may call it again at once.
__device__ __forceinline__ std::uint32_t largest_of_block(std::uint32_t mine) {
    __shared__ std::uint32_t found[kThreads / kWarp];
    mine = largest_of(mine);
    __syncthreads();  // the results of a call before are read
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = mine;
    __syncthreads();
    for (int i = 0; i < kThreads / kWarp; ++i) mine = larger(mine, found[i]);
    return mine;
}

__device__ __forceinline__ float sum_of_block(float mine) {
    __shared__ float found[kThreads / kWarp];
    mine = sum_of(mine);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = mine;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < kThreads / kWarp; ++i) total = __fadd_rn(total, found[i]);
    return total;
}

// -- scales -----------------------------------------------------------------------------------------------------------

// Magnitudes are compared as the bits of numbers without their sign, of which NaN are the largest.
__device__ __forceinline__ std::uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7FFFFFFFu; }

// absmax of the largest magnitude: NaN where it is no finite number.
__device__ __forceinline__ float absmax_of(std::uint32_t largest) {
    return __uint_as_float(largest < kInfinityBits ? largest : kNaNBits);
}

}  // namespace bnb_core
