// The values of 4-bit codes in the shared memory of a block.
#pragma once

#include <type_traits>

#include "../warp.cuh"
#include "native/codebooks.h"

namespace bnb_core {

constexpr int kCodes = 16;

// A copy for each lane: whatever codes they have, their reads take place at once.
struct Values {
    float of[kCodes][kWarp];

    // By all threads of a block.
    __device__ void make(const float* values) {
        for (int i = threadIdx.x; i < kCodes * kWarp; i += blockDim.x) of[i / kWarp][i % kWarp] = values[i / kWarp];
        __syncthreads();
    }

    __device__ __forceinline__ float operator[](unsigned code) const { return of[code][threadIdx.x % kWarp]; }

    // Of element i of those in the bytes of a word.
    __device__ __forceinline__ float at(std::uint32_t word, int i) const {
        constexpr int kRow = 7;  // log2 of the size of a row
        const int bit = i / 2 * 8 + (i % 2 == 0 ? 4 : 0);
        const std::uint32_t row = bit < kRow ? word << (kRow - bit) : word >> (bit - kRow);
        const std::uint32_t place = (row & ((kCodes - 1) << kRow)) | (threadIdx.x % kWarp * sizeof(float));
        return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(of) + place);
    }
};

// The codes of WIDTH elements from a whole byte on, which are there and aligned.
template <int WIDTH>
__device__ __forceinline__ std::uint32_t codes_at(const std::uint8_t* packed, std::int64_t element) {
    using Word = std::conditional_t<WIDTH == 8, std::uint32_t, std::uint16_t>;
    static_assert(sizeof(Word) * 2 == WIDTH);
    return *reinterpret_cast<const Word*>(packed + element / 2);
}

// Those of them that are before element n; others are 0.
template <int WIDTH>
__device__ __forceinline__ std::uint32_t codes_before(const std::uint8_t* packed, std::int64_t element,
                                                      std::int64_t n) {
    std::uint32_t word = 0;
    for (int i = 0; i < WIDTH && element + i < n; i += 2) {
        word |= static_cast<std::uint32_t>(packed[(element + i) / 2]) << (4 * i);
    }
    return word;
}

}  // namespace bnb_core
