// The values of 4-bit codes in the shared memory of a block.
#pragma once

#include "../warp.cuh"
#include "native/codebooks.h"

namespace bnb_core {

constexpr int kCodes = 16;

// A copy for each lane: whatever codes they have, their reads take place at once.
struct Values {
    float of[kCodes][kWarp];

    // By all threads of a block.
    __device__ void make(const FourBit& type) {
        for (int i = threadIdx.x; i < kCodes * kWarp; i += blockDim.x)
            of[i / kWarp][i % kWarp] = type.values[i / kWarp];
        __syncthreads();
    }

    __device__ __forceinline__ float operator[](unsigned code) const { return of[code][threadIdx.x % kWarp]; }

    // Of element i of a run that begins with a whole byte.
    template <class Bytes>
    __device__ __forceinline__ float at(const Bytes& bytes, int i) const {
        const unsigned byte = bytes.of[i / 2];
        return (*this)[i % 2 == 0 ? byte >> 4 : byte & 15];
    }
};

}  // namespace bnb_core
